package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
)

// clientsCommand is the name of the subcommand that prints what the running proxy has counted. imds-migrate
// report runs it, as the image has no other program.
const clientsCommand = "clients"

const (
	clientsTimeout = 10 * time.Second
	// maxClientsAnswer bounds each answer. A pod's metrics have about 20 KiB.
	maxClientsAnswer = 1 << 20
)

const clientsUsage = `Usage: proxy clients [flags]

Print which clients have asked the proxy that runs in this pod, as JSON: what /debug/clients answers.

%s
Exit codes:
%s`

// clientsExits are the exit codes of `proxy clients`.
var clientsExits = []exit{
	{exitOK, "", "printed"},
	{exitFailure, "", "the proxy does not answer, or another user's process listens at its port"},
	{exitUsage, "", "a flag or its environment variable is invalid"},
}

// clients runs `proxy clients` and returns the exit code.
func clients(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	flags := flagenv.New("proxy clients", func(flag string) string {
		if flag == "metrics" {
			return ""
		}
		return variable(flag)
	})
	port, metrics := uint16(azure.ProxyPort), false
	flagenv.Var(flags.FlagSet, &port, "proxy-port", azure.ParsePort, "`port` of the token endpoint, on 127.0.0.1")
	flags.BoolVar(&metrics, "metrics", false, "also print the metrics, after the JSON")
	flags.Usage = func() { fmt.Fprintf(stdout, clientsUsage, flags.FlagUsages(), exitHelp(clientsExits)) }
	switch err := flags.Parse(args, getenv); {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		return fail(stderr, exitUsage, err)
	}
	ctx, cancel := context.WithTimeout(ctx, clientsTimeout)
	defer cancel()
	paths := []string{"/debug/clients"}
	if metrics {
		paths = append(paths, "/metrics")
	}
	for _, path := range paths {
		if err := printAnswer(ctx, port, path, stdout); err != nil {
			return fail(stderr, exitFailure, err)
		}
	}
	return exitOK
}

// printAnswer prints what the proxy at the port answers. While the proxy is down, any container of the pod
// can bind its port: hence the check of the listener's user.
func printAnswer(ctx context.Context, port uint16, path string, stdout io.Writer) error {
	url := fmt.Sprintf("http://127.0.0.1:%d%s", port, path)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	// Proxy: nil, because HTTP_PROXY must not apply to a request within the pod.
	client := &http.Client{Transport: &http.Transport{Proxy: nil, MaxResponseHeaderBytes: maxAnswerHeader, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", url, errors.Unwrap(err)) // without the method
	}
	defer resp.Body.Close()
	if err := requireOwnUser(port); err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	if _, err := io.Copy(stdout, io.LimitReader(resp.Body, maxClientsAnswer)); err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	return nil
}
