package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReportErrors: one line says what is wrong.
func TestReportErrors(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--kubeconfig=" + gone}, 1, "imds-migrate: no cluster: stat " + gone + ": no such file or directory: set --kubeconfig and --context"},
		{[]string{"--period=0d"}, 2, `imds-migrate: --period "0d": must be days or hours, such as 35d or 12h`},
		{[]string{"--prometheus=prometheus:9090"}, 2, "imds-migrate: --prometheus must be a URL, such as http://127.0.0.1:9090\n"},
		{[]string{"--prometheus=http://user:pa%ss@h"}, 2, "imds-migrate: --prometheus must be a URL, such as http://127.0.0.1:9090\n"},
		{[]string{"--prometheus=http://h", "--prometheus-label=a-b=c"}, 2, `imds-migrate: --prometheus-label "a-b=c": must be a label and its value, such as cluster=prod`},
		{[]string{"--prometheus-label=a=b"}, 2, "imds-migrate: --prometheus-label needs --prometheus\n"},
		{[]string{"--timeout=0s"}, 2, `imds-migrate: --timeout "0s": must be more than zero`},
		{[]string{"--output=pdf"}, 2, `imds-migrate: --output "pdf": must be table, wide, json, yaml, markdown, csv or html`},
		{[]string{"deploy/web"}, 2, `imds-migrate: unexpected argument "deploy/web"`},
	} {
		var stdout, stderr bytes.Buffer
		code := run(append([]string{"report"}, c.args...), nil, &stdout, &stderr)
		if code != c.code || !strings.HasPrefix(stderr.String(), c.want) || strings.Count(stderr.String(), "\n") != 1 || stdout.Len() > 0 {
			t.Errorf("%q: exit code %d, %s%s, want %d, %s", c.args, code, &stdout, &stderr, c.code, c.want)
		}
	}
}

// TestReportInterrupted: a report that is interrupted has the answers until then, and ends with exit code 1.
func TestReportInterrupted(t *testing.T) {
	const pod = `{"metadata": {"name": %q, "namespace": "shop", "labels": {"azure.workload.identity/use": "true"}, "annotations": {"azure.workload.identity/inject-proxy-sidecar": "true"}},
		"spec": {"containers": [{"name": "azwi-proxy", "env": [{"name": "PROXY_ADMIN_ADDRESS", "value": ":8001"}]}]},
		"status": {"containerStatuses": [{"name": "azwi-proxy", "state": {"running": {"startedAt": "2026-11-01T00:00:00Z"}}}]}}`
	stopped := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	answered := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch path := r.URL.Path; {
		case path == "/version":
			io.WriteString(w, `{"gitVersion": "v1.35.2"}`)
		case path == "/apis":
			io.WriteString(w, `{"groups": []}`)
		case path == "/api/v1/pods":
			fmt.Fprintf(w, `{"items": [`+pod+`, `+pod+`]}`, "first", "second")
		case strings.HasSuffix(path, "/http:first:8001/proxy/debug/clients"):
			io.WriteString(w, `{"clients": [{"sdk": "curl", "requests": 1, "first_seen": "2026-11-01T00:00:00Z", "last_seen": "2099-11-01T00:00:00Z"}]}`+"\n")
		case strings.HasSuffix(path, "/http:first:8001/proxy/metrics"):
			io.WriteString(w, "imds_oidc_proxy_exchange_errors_total{code=\"700213\"} 3\nimds_oidc_proxy_build_info{version=\"v1\",goversion=\"go\"} 1\n")
		case strings.HasSuffix(path, "/pods/first/log"): // requested because of the errors, when the answer is complete
			close(answered)
		case strings.HasSuffix(path, "/debug/clients"):
			<-answered
			cancel(stopped)
			<-r.Context().Done()
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	var stdout, stderr bytes.Buffer
	code := runReport(ctx, []string{"--server=" + server.URL, "--kubeconfig=" + os.DevNull, "--output=csv"}, &stdout, &stderr)
	if code != 1 || stderr.String() != "imds-migrate: stopped\n" || !strings.Contains(stdout.String(), "first,1,1,needed,") || !strings.Contains(stdout.String(), "second,1,0,unknown,") {
		t.Errorf("exit code %d, %s%s", code, &stdout, &stderr)
	}
}

func TestParsePeriod(t *testing.T) {
	for text, want := range map[string]time.Duration{"35d": 35 * 24 * time.Hour, "12h": 12 * time.Hour, "1d": 24 * time.Hour, "90m": 90 * time.Minute} {
		if got, err := parsePeriod(text); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0d", "-1d", "1.5d", "35", "d", "0h", "-5h", "99999999999d", "3651d", "x"} {
		if got, err := parsePeriod(text); err == nil {
			t.Errorf("%q: got %s, want an error", text, got)
		}
	}
}
