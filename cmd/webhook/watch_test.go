package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// answering is a transport with one answer.
type answering struct {
	status int
	err    error
}

func (a *answering) RoundTrip(*http.Request) (*http.Response, error) {
	if a.err != nil {
		return nil, a.err
	}
	body := io.NopCloser(strings.NewReader("event"))
	return &http.Response{StatusCode: a.status, Status: http.StatusText(a.status), Body: body}, nil
}

// TestAccountWatch checks when the service accounts in memory count as outdated, with a clock of the
// test and an API server that answers, fails, or withdraws a permission.
func TestAccountWatch(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	clock, m, server := &fakeClock{now: time.Now()}, newMetrics(), &answering{status: 200}
	w := newWatch(serviceAccounts, clock.Now, m.current, zap.New(core))
	var listErr error
	w.list = func(context.Context) error { return listErr }
	request := func(url string) io.ReadCloser {
		r, err := http.NewRequest("GET", "https://192.0.2.1"+url, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := w.wrap(server).RoundTrip(r)
		if err != nil {
			return nil
		}
		return response.Body
	}
	const watch = "/api/v1/serviceaccounts?allowWatchBookmarks=true&watch=true"
	after := func(pass time.Duration, want string) {
		t.Helper()
		clock.now = clock.now.Add(pass)
		w.check(t.Context())
		err := w.current()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if got := testutil.ToFloat64(m.current); (got == 1) != (err == nil) {
			t.Errorf("the metric is %v with %v", got, err)
		}
	}
	after(maxBroken, "") // the first watch has not begun yet
	request("/api/v1/serviceaccounts?limit=1")
	request("/api/v1/pods?watch=true")
	after(time.Second, "have not been watched for 1m1s")
	body := request(watch)
	after(time.Hour, "")

	if _, err := io.ReadAll(body); err != nil {
		t.Fatal(err)
	}
	body.Close()
	after(maxBroken, "")
	server.status = 403
	request(watch)
	after(time.Second, "not been watched for 1m1s: the API server answers Forbidden")
	server.err = errors.New("connection refused")
	request(watch)
	after(0, "connection refused")
	server.status, server.err = 200, nil
	first, second := request(watch), request(watch)
	after(0, "")
	first.Close()
	after(time.Hour, "") // the second watch is open

	listErr = errors.New("serviceaccounts is forbidden")
	after(maxBroken, "")
	after(time.Second, "could not be listed for 1m1s: serviceaccounts is forbidden")
	listErr = nil
	after(0, "")
	second.Close()
	after(maxBroken+time.Second, "the watch ended")

	var levels []string
	for _, entry := range logs.All() {
		levels = append(levels, entry.Level.String())
	}
	if got, want := strings.Join(levels, " "), "error info error info error info error"; got != want {
		t.Errorf("logged lines of the levels %s, want %s: one for each change", got, want)
	}
}

// TestWatchedResources checks that each watch observes the requests for its own objects.
func TestWatchedResources(t *testing.T) {
	for of, url := range map[watched]string{
		serviceAccounts:   "/api/v1/serviceaccounts?watch=true",
		certificateSecret: "/api/v1/namespaces/hook/secrets?fieldSelector=metadata.name%3Dhook-cert&watch=true",
		configuration:     "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations?watch=true",
	} {
		for _, observing := range []watched{serviceAccounts, certificateSecret, configuration} {
			w := newWatch(observing, time.Now, newMetrics().current, zap.NewNop())
			r, err := http.NewRequest("GET", "https://192.0.2.1"+url, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.wrap(&answering{status: 200}).RoundTrip(r); err != nil {
				t.Fatal(err)
			}
			if got := w.open == 1; got != (observing == of) {
				t.Errorf("%s: observed as %s: %t", url, observing.name, got)
			}
		}
	}
}
