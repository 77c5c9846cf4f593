package metrics_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"imds-oidc-proxy/internal/metrics"
)

var update = flag.Bool("update", false, "write the results into testdata")

var epoch = time.Unix(1605152024, 0)

// filled returns metrics with at least one event each.
func filled() *metrics.Metrics {
	m := metrics.New(metrics.Config{
		Version:   "v1.2.3",
		GoVersion: "go1.26.0",
		Handlers:  []string{"token", "forward"},
		Now:       func() time.Time { return epoch },
		Sample: func() metrics.Sample {
			return metrics.Sample{
				CacheEntries:         2,
				SoonestTokenExpiry:   epoch.Add(90 * time.Second),
				FederatedTokenIssued: epoch.Add(-time.Hour),
				FederatedTokenExpiry: epoch.Add(-500 * time.Millisecond),
				LogLinesLeftOut:      7,
				Callers: []metrics.Caller{
					{SDK: "go-azidentity", Version: "1.0.0", WorkloadIdentity: "no"},
					{SDK: "a\"b\\c\nd", Version: "", WorkloadIdentity: "unknown"},
				},
			}
		},
	})
	m.TokenRequest(metrics.Success, "cache")
	m.TokenRequest(metrics.Success, "cache")
	m.TokenRequest(metrics.Failed, "")
	m.Request("token", 100*time.Microsecond) // equal to the bound, so it is in this bucket
	m.Request("token", 100*time.Microsecond+1)
	m.Request("token", -time.Second)
	m.Request("elsewhere", time.Minute)
	m.RefusedRequest("no_metadata_header")
	m.LimitedRequest("exchange_rate")
	m.ForwardedRequest(metrics.Success)
	m.Exchange(70*time.Millisecond, "")
	m.Exchange(time.Minute, "700016")
	m.Refresh(metrics.Success)
	return m
}

func scrape(m *metrics.Metrics) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w
}

// TestExposition compares a scrape byte for byte: dashboards and alerts depend on the
// names and labels.
func TestExposition(t *testing.T) {
	const file = "testdata/metrics.txt"
	w := scrape(filled())
	if got := w.Header().Get("Content-Type"); got != "text/plain; version=0.0.4; charset=utf-8" {
		t.Errorf("got Content-Type %q", got)
	}
	if *update {
		if err := os.WriteFile(file, w.Body.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(w.Body.Bytes(), want) {
		t.Errorf("got\n%s\nwant\n%s\n(if this is intended, run go test -update)", w.Body, want)
	}
}

// TestPromtool checks a scrape with Prometheus' promtool, if it is installed. Otherwise
// TestExposition must suffice: its golden file was checked with promtool.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Logf("promtool is not installed (Debian package prometheus): TestExposition compares with a file that it approved")
		return
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = scrape(filled()).Body
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// TestUnknownIsLeftOut: a scrape has no metric for an unknown time. A zero would look
// like a token that has just expired.
func TestUnknownIsLeftOut(t *testing.T) {
	text := scrape(metrics.New(metrics.Config{Sample: func() metrics.Sample { return metrics.Sample{} }})).Body.String()
	for _, name := range []string{"soonest_token_expiry_seconds", "federated_token_age_seconds", "federated_token_expiry_seconds"} {
		if strings.Contains(text, name) {
			t.Errorf("%s is shown, although the time is unknown", name)
		}
	}
	if !strings.Contains(text, "\nimds_oidc_proxy_cache_entries 0\n") {
		t.Error("an empty cache is not shown")
	}
	if !strings.Contains(text, `imds_oidc_proxy_token_requests_total{result="success",source="cache"} 0`) {
		t.Error("a counter at zero is not shown")
	}
}

// TestSeriesAreBounded: a counter has at most 128 series, and counts further label values
// together as other.
func TestSeriesAreBounded(t *testing.T) {
	m := metrics.New(metrics.Config{})
	for i := range 1000 {
		m.RefusedRequest(fmt.Sprint("reason-", i))
	}
	text := scrape(m).Body.String()
	if got := strings.Count(text, "refused_requests_total{"); got != 129 {
		t.Errorf("got %d series, want 128 and other", got)
	}
	if want := `refused_requests_total{reason="other"} 872`; !strings.Contains(text, want) {
		t.Errorf("%s is missing", want)
	}
}

// TestConcurrent counts from many goroutines during scrapes.
func TestConcurrent(t *testing.T) {
	m := metrics.New(metrics.Config{Handlers: []string{"token"}})
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for i := range 500 {
				m.TokenRequest(metrics.Success, "entra")
				m.Request("token", time.Millisecond)
				m.Exchange(time.Millisecond, fmt.Sprint(i%7))
				if i%100 == 0 {
					scrape(m)
				}
			}
		})
	}
	group.Wait()
	text := scrape(m).Body.String()
	for _, want := range []string{
		`token_requests_total{result="success",source="entra"} 4000`,
		`request_duration_seconds_count{handler="token"} 4000`,
		`request_duration_seconds_sum{handler="token"} 4` + "\n",
		`exchange_duration_seconds_bucket{le="+Inf"} 4000`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
}

func TestCountingDoesNotAllocate(t *testing.T) {
	m := filled()
	if got := testing.AllocsPerRun(100, func() {
		m.Request("token", time.Millisecond)
		m.TokenRequest(metrics.Success, "cache")
	}); got != 0 {
		t.Errorf("got %v allocations for a cached token, want none", got)
	}
}

// TestDocumented: docs/metrics.md lists every metric, and no metric that does not exist.
func TestDocumented(t *testing.T) {
	docs, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := make(map[string]bool)
	for line := range strings.Lines(scrape(filled()).Body.String()) {
		if fields := strings.Fields(line); fields[0] == "#" {
			shown[fields[2]] = true
		}
	}
	documented := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `(imds_oidc_proxy_[a-z_]+)`").FindAllStringSubmatch(string(docs), -1) {
		documented[row[1]] = true
	}
	if !maps.Equal(shown, documented) {
		t.Errorf("shown %v\ndocumented %v", shown, documented)
	}
}
