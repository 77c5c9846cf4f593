// Command ask asks for a token as the SDKs do that heed AZURE_POD_IDENTITY_AUTHORITY_HOST,
// and prints it as one JSON line. A path as argument is asked for instead, and the
// answer printed as it comes.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// metadataAddress is what SDKs have compiled in.
const metadataAddress = "http://169.254.169.254"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	host := os.Getenv("AZURE_POD_IDENTITY_AUTHORITY_HOST")
	if host == "" {
		host = metadataAddress
	}
	if len(args) > 0 {
		body, err := get(host + args[0])
		fmt.Printf("%s\n", body)
		return err
	}
	body, err := get(host + "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net")
	if err != nil {
		return err
	}
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]string{"token": answer.Token})
}

func get(url string) ([]byte, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Metadata", "true")
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{Proxy: nil}}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return body, err
}
