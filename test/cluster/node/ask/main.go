// Command ask sends a GET request for the path in its argument to the metadata service,
// and prints the body of the answer unchanged.
package main

import (
	"errors"
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
	if len(args) != 1 {
		return errors.New("name one path")
	}
	request, err := http.NewRequest(http.MethodGet, metadataAddress+args[0], nil)
	if err != nil {
		return err
	}
	request.Header.Set("Metadata", "true")
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{Proxy: nil}}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}
