package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/netns"
	"imds-oidc-proxy/test/kit/pod"
)

const database = "https://database.windows.net/"

// recordedRequest returns a request that a client has sent, byte for byte.
func recordedRequest(t *testing.T, client string) string {
	t.Helper()
	text, err := os.ReadFile("../../internal/imds/testdata/recorded/" + client + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var recording struct {
		Requests []struct {
			Method, Target, HTTP string
			Headers              [][2]string
		}
	}
	if err := json.Unmarshal(text, &recording); err != nil || len(recording.Requests) != 1 {
		t.Fatalf("%v: %s", err, text)
	}
	r := recording.Requests[0]
	request := fmt.Sprintf("%s %s %s\r\n", r.Method, r.Target, r.HTTP)
	for _, h := range r.Headers {
		request += h[0] + ": " + h[1] + "\r\n"
	}
	return request + "\r\n"
}

// tokenFor sends the bytes to the metadata address and returns the token in the answer.
func tokenFor(ctx context.Context, t *testing.T, request string) string {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", netns.MetadataAddress+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var token struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&token); err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v", answer.Status, err)
	}
	return token.AccessToken
}

// TestIdentityBinding: clients that know nothing of identity bindings get tokens through one. The
// stand-in for AKS's token proxy verifies the server name, the path, the audience, the token and
// the permission. Entra has no credential for the pod's own token.
func TestIdentityBinding(t *testing.T) {
	p, ctx := startPod(t, pod.Config{IdentityBinding: true})
	for _, args := range [][]string{nil, {"--client-id=" + pod.ClientID}, {"--default-chain"}} {
		// Old credential chains give up after a second, as in TestAzidentity.
		client := append([]string{program("azidentity-v1.0.0")}, args...)
		out, err := p.Application(ctx, nil, client...)
		if err != nil {
			out, err = p.Application(ctx, nil, client...)
		}
		var answer struct{ Token string }
		if err != nil || json.Unmarshal([]byte(out), &answer) != nil {
			t.Fatalf("azidentity 1.0.0 %q: %v: %s", args, err, out)
		}
		checkToken(t, answer.Token, pod.ClientID, vault)
	}
	checkToken(t, tokenFor(ctx, t, recordedRequest(t, "py-msrestazure-0.6.4")), pod.ClientID, vault)
	checkToken(t, tokenFor(ctx, t, recordedRequest(t, "msodbcsql-18.5.1")), pod.ClientID, database)

	requests := p.Binding.Requests()
	if len(requests) != 2 {
		t.Errorf("the token proxy got %d requests, want one for each resource", len(requests))
	}
	for _, r := range requests {
		if r.Status != http.StatusOK || r.Subject != pod.Subject || !strings.HasSuffix(r.ServerName, ".ests.aks") || !strings.HasPrefix(r.Path, "/identity-binding/") {
			t.Errorf("the token proxy got %+v", r)
		}
	}
	for _, x := range p.Entra.Exchanges() {
		if x.Subject == pod.Subject {
			t.Errorf("Entra got the pod's token: %+v", x)
		}
	}
	checkDecoy(t, p)
}

// TestIdentityBindingRefused: if the identity has no binding, the client gets an error that it
// retries, and the log and the check have the command that creates the binding. Then the client
// gets its token.
func TestIdentityBindingRefused(t *testing.T) {
	p, ctx := startPod(t, pod.Config{IdentityBinding: true})
	p.Binding.Unbind(pod.ClientID)
	body := curl(t, ctx, p, "-H", "Metadata: true", "-w", "\n%{http_code}", tokenURL)
	if !strings.Contains(body, "The identity binding of the cluster does not let the service account use the identity") || !strings.HasSuffix(body, "\n500") {
		t.Errorf("got %s", body)
	}
	const command = "az aks identity-binding create"
	if log := p.ProxyLog.String(); !strings.Contains(log, `"kind":"binding_mismatch"`) || !strings.Contains(log, command) {
		t.Errorf("the log does not say how to create the binding:\n%s", log)
	}
	report := runCheck(t, ctx, p, pod.ProxyUID)
	if got := report.text("exchange", "token"); report.FirstFailed != "exchange" || !strings.Contains(got, "finds no identity binding of the identity") {
		t.Errorf("got %q: %+v", got, report)
	}
	p.Binding.Bind(entra.Application{ClientID: pod.ClientID})
	waitForToken(t, ctx, p)
}
