// Command client is the application of the pods that podstart measures. It reports when it started
// and, with the argument token, when it got its first token from the metadata service. The report
// is one line of JSON in the container's termination message, so that it costs the pod nothing.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

const (
	// query is the request of a client of IMDS that names no identity.
	query = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F"
	// retry is short compared with what is measured.
	retry = 2 * time.Millisecond
	// timeout bounds the wait for a token.
	timeout = 30 * time.Second
)

// Report is the termination message. The times are in nanoseconds since 1970.
type report struct {
	Started, Answered int64
	Failed            int    // requests before the answer
	Error             string // of the last of them
}

func main() {
	r := report{Started: time.Now().UnixNano()}
	if len(os.Args) == 2 && os.Args[1] == "token" {
		r.askUntilAnswered()
	}
	text, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile("/dev/termination-log", text, 0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (r *report) askUntilAnswered() {
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{Proxy: nil}}
	for began := time.Now(); time.Since(began) < timeout; time.Sleep(retry) {
		err := ask(client)
		if err == nil {
			r.Answered = time.Now().UnixNano()
			return
		}
		r.Failed++
		r.Error = err.Error()
	}
}

func ask(client *http.Client) error {
	host := os.Getenv("AZURE_POD_IDENTITY_AUTHORITY_HOST") // of a pod without a redirect
	if host == "" {
		host = "http://169.254.169.254"
	}
	request, err := http.NewRequest(http.MethodGet, host+query, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Metadata", "true")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, body)
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.AccessToken == "" {
		return errors.New("the answer has no token")
	}
	return nil
}
