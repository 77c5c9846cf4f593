package imds_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/imds"
)

// probe is a row of the table of probes in docs/answers.md.
type probe struct{ method, path, when, status, reason string }

func readProbes(t *testing.T) []probe {
	t.Helper()
	text, err := os.ReadFile("../../docs/answers.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "<!-- table: probes -->\n")
	if !ok {
		t.Fatal("docs/answers.md has no table of probes")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var probes []probe
	for _, row := range strings.Split(table, "\n")[2:] {
		cells := strings.Split(strings.Trim(row, "|"), "|")
		if len(cells) != 5 {
			t.Fatalf("%s: got %d cells, want 5", row, len(cells))
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		method, path, _ := strings.Cut(strings.Trim(cells[0], "`"), " ")
		probes = append(probes, probe{method, path, cells[1], cells[2], strings.Trim(cells[3], "`–")})
	}
	return probes
}

// TestProbes: the table of probes in docs/answers.md is what the handler does.
func TestProbes(t *testing.T) {
	probes := readProbes(t)
	if len(probes) < 15 {
		t.Fatalf("got %d rows", len(probes))
	}
	for _, p := range probes {
		t.Run(p.method+" "+p.path+" "+p.when, func(t *testing.T) {
			if p.status == "its own" {
				for _, status := range []int{200, 404, 410, 500, 503} {
					p.status = strconv.Itoa(status)
					p.check(t, imdsThat(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }), "Metadata: true")
				}
				return
			}
			available := imdsThat(t, func(http.ResponseWriter, *http.Request) {})
			switch p.when {
			case "always":
				for _, imds := range []string{"", available} {
					p.check(t, imds, "Metadata: true")
					p.check(t, imds)
				}
			case "without `Metadata: true`":
				p.check(t, available)
			case "forwarding is off":
				p.check(t, "", "Metadata: true")
			case "IMDS cannot be reached":
				p.check(t, "http://127.0.0.1:1", "Metadata: true")
			case "IMDS gives no usable answer":
				p.check(t, imdsThat(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), "Metadata: true")
				p.check(t, imdsThat(t, http.RedirectHandler("/", http.StatusFound).ServeHTTP), "Metadata: true")
			case "the redirect leads back to the proxy":
				p.check(t, available, "Metadata: true", "Via: 1.1 "+imds.ServerName)
			case "too many requests at a time":
				p.checkBusy(t)
			case "`--instance-metadata` has it", "`--instance-metadata` does not have it", "`--instance-metadata` has a string there", "`--instance-metadata`, unknown version":
				for _, imds := range []string{"", available} {
					p.checkInstance(t, imds)
				}
			case "IMDS answers":
				p.check(t, available, "Metadata: true")
			default:
				t.Errorf("no test for %q", p.when)
			}
		})
	}
}

// imdsThat returns the URL of a stand-in for the real IMDS.
func imdsThat(t *testing.T, answers http.HandlerFunc) string {
	s := httptest.NewServer(answers)
	t.Cleanup(s.Close)
	return s.URL
}

// handler returns a handler that forwards to a URL, and the event of its last request.
func (p probe) handler(t *testing.T, forwardTo string) (*imds.Handler, *imds.Event) {
	event := new(imds.Event)
	cfg := config(&tokenSource{})
	cfg.Passthrough = azure.MetadataURL(forwardTo)
	cfg.Observe = func(_ *http.Request, e imds.Event) { *event = e }
	return newHandler(t, cfg), event
}

func (p probe) check(t *testing.T, forwardTo string, headers ...string) {
	t.Helper()
	h, event := p.handler(t, forwardTo)
	r := httptest.NewRequest(p.method, p.path, nil)
	r.Host = "169.254.169.254"
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if got := strconv.Itoa(w.Code); got != p.status || event.Refusal != p.reason || event.Status != w.Code {
		t.Errorf("with %q, forwarding to %q: got %s %q, observed %+v, want %s %q", headers, forwardTo, got, w.Body, event, p.status, p.reason)
	}
	// Docker Desktop answers 403 with this word, and SDKs then take the proxy for it.
	if strings.Contains(strings.ToLower(w.Body.String()), "unreachable") {
		t.Errorf("got %q", w.Body)
	}
}

// checkInstance checks the answer from a document.
func (p probe) checkInstance(t *testing.T, forwardTo string) {
	t.Helper()
	var event imds.Event
	cfg := config(&tokenSource{})
	cfg.Passthrough, cfg.Instance = azure.MetadataURL(forwardTo), parseInstance(t, `{"compute": {"location": "westeurope"}}`, nil)
	cfg.Observe = func(_ *http.Request, e imds.Event) { event = e }
	if w := get(newHandler(t, cfg), p.path); strconv.Itoa(w.Code) != p.status || event.Refusal != p.reason {
		t.Errorf("got %d %s, observed %+v, want %s %q", w.Code, w.Body, event, p.status, p.reason)
	}
}

// checkBusy sends one request more than may be in progress and wait.
func (p probe) checkBusy(t *testing.T) {
	release := make(chan struct{})
	forwardTo := imdsThat(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	cfg := config(&tokenSource{})
	cfg.Passthrough = azure.MetadataURL(forwardTo)
	h := newHandler(t, cfg.WithForwardLimits(patience, 0, 1))
	statuses := make(chan int, 3)
	for range cap(statuses) {
		go func() { statuses <- get(h, p.path).Code }()
	}
	if got := strconv.Itoa(<-statuses); got != p.status {
		t.Errorf("got %s, want %s", got, p.status)
	}
}
