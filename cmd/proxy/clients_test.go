package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/census"
)

// runClients runs `proxy clients` with the variables of a pod.
func runClients(t *testing.T, environment map[string]string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, messages bytes.Buffer
	code = run(t.Context(), append([]string{clientsCommand}, args...), func(name string) string { return environment[name] }, &out, &messages)
	return out.String(), messages.String(), code
}

// TestClients: `proxy clients` prints the census of the proxy that runs, and the metrics if asked to.
func TestClients(t *testing.T) {
	p := newPod(t)
	runPod(t, p)
	fetch(t, p.port, tokenQuery+testResource, http.Header{"Metadata": {"true"}, "User-Agent": {"azsdk-go-azidentity/v1.0.0"}})
	stdout, stderr, code := runClients(t, p.environment, "--metrics")
	decoder := json.NewDecoder(strings.NewReader(stdout))
	var answer struct{ Clients []census.Entry }
	if err := decoder.Decode(&answer); err != nil || code != exitOK || stderr != "" {
		t.Fatalf("got %v, exit code %d, %s%s", err, code, stderr, stdout)
	}
	if len(answer.Clients) != 1 || answer.Clients[0].SDK != "go-azidentity" || answer.Clients[0].Requests != 1 {
		t.Errorf("got %+v, want one request of go-azidentity", answer.Clients)
	}
	if !strings.Contains(stdout[decoder.InputOffset():], "\nimds_oidc_proxy_token_requests_total{") {
		t.Errorf("no metrics after the JSON:\n%s", stdout)
	}
	if stdout, _, code := runClients(t, p.environment); code != exitOK || !json.Valid([]byte(stdout)) {
		t.Errorf("without --metrics: got exit code %d, %s, want JSON alone", code, stdout)
	}
}

// TestClientsFailures: one line says why nothing was printed.
func TestClientsFailures(t *testing.T) {
	free, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	_, port, err := net.SplitHostPort(other.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--proxy-port=" + free}, exitFailure, "proxy: http://127.0.0.1:" + free + "/debug/clients: dial tcp 127.0.0.1:" + free + ": connect: connection refused\n"},
		{[]string{"--proxy-port=" + port}, exitFailure, "proxy: http://127.0.0.1:" + port + "/debug/clients: 404 Not Found\n"},
		{[]string{"--proxy-port=0"}, exitUsage, `proxy: --proxy-port (PROXY_PORT) "0": must be between 1 and 65535` + "\n"},
		{[]string{"--metrisc"}, exitUsage, "proxy: unknown flag: --metrisc (did you mean --metrics?)\n"},
	} {
		if stdout, stderr, code := runClients(t, nil, test.args...); code != test.code || stderr != test.want || stdout != "" {
			t.Errorf("%q: got exit code %d, %q, %q, want %d, %q", test.args, code, stderr, stdout, test.code, test.want)
		}
	}
}
