package imds_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/server"
	"imds-oidc-proxy/test/kit/local"
)

// patience bounds every wait of these tests. A test waits that long only if it fails.
const patience = 20 * time.Second

// decoy is a stand-in for the real IMDS, which must never get a request for an identity.
type decoy struct {
	*httptest.Server
	mu      sync.Mutex // guards the fields below
	targets []string
	headers []http.Header
}

func newDecoy(t testing.TB) *decoy {
	d := &decoy{}
	d.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.targets = append(d.targets, r.RequestURI)
		d.headers = append(d.headers, r.Header.Clone())
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Server", "decoy")
		io.WriteString(w, `{"decoy":true}`)
	}))
	t.Cleanup(d.Close)
	return d
}

// seen returns the request targets since the last call.
func (d *decoy) seen() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	targets := d.targets
	d.targets = nil
	return targets
}

// seenHeaders returns the headers of the requests since its last call.
func (d *decoy) seenHeaders() []http.Header {
	d.mu.Lock()
	defer d.mu.Unlock()
	headers := d.headers
	d.headers = nil
	return headers
}

// serve runs a handler in the proxy's server and returns its address.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, listener, h)
	return listener.Addr().String()
}

// serveInMemory is serve for a synctest bubble.
func serveInMemory(t testing.TB, h http.Handler) (dial func() *client) {
	listener := local.NewPipes()
	serveOn(t, listener, h)
	return func() *client { return newClient(t, listener.Dial(t)) }
}

func serveOn(t testing.TB, listener net.Listener, h http.Handler) {
	s := server.New(listener, server.Config{Handler: h, MaxConnections: 1024})
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// hostileCase is one case of testdata/hostile; see the README there.
type hostileCase struct {
	name      string
	request   []byte
	statuses  []int
	says      string
	plain     bool
	forwarded []string
	tokens    []string
}

func TestHostile(t *testing.T) {
	files, err := filepath.Glob("testdata/hostile/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	machine := newDecoy(t)
	tokens := &tokenSource{}
	cfg := config(tokens)
	cfg.Passthrough = azure.MetadataURL(machine.URL)
	cfg.AppServiceHeader = secret
	addr := serve(t, withShortBodyTimeout(newHandler(t, cfg)))

	count := 0
	for _, file := range files {
		for _, c := range readCases(t, file) {
			count++
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt")+"/"+c.name, func(t *testing.T) {
				answers := exchangeBytes(t, addr, c.request)
				checkAnswers(t, c, answers)
				got := machine.seen()
				for _, target := range got {
					if !regexp.MustCompile(`^/metadata/(instance|attested|scheduledevents|loadbalancer)([/?]|$)`).MatchString(target) {
						t.Errorf("IMDS saw %s", target)
					}
				}
				if !slices.Equal(got, c.forwarded) {
					t.Errorf("IMDS saw %q, want %q", got, c.forwarded)
				}
				var asked []string
				for _, req := range tokens.seen() {
					asked = append(asked, string(req.ClientID)+" "+string(req.Resource))
				}
				if !slices.Equal(asked, c.tokens) {
					t.Errorf("asked for %q, want %q", asked, c.tokens)
				}
			})
		}
	}
	t.Logf("%d cases", count)
}

// withShortBodyTimeout shortens the server's wait for a request's body, because some cases
// announce a body that they do not send.
func withShortBodyTimeout(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		}
		h.ServeHTTP(w, r)
	})
}

// readCases parses a file of cases. It fails on anything unknown, because a case that is
// parsed wrongly could pass for the wrong reason.
func readCases(t testing.TB, file string) []hostileCase {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var cases []hostileCase
	for number, line := range strings.Split(string(text), "\n") {
		if name, ok := strings.CutPrefix(line, "-- "); ok {
			cases = append(cases, hostileCase{name: strings.TrimSuffix(name, " --")})
			continue
		}
		if len(cases) == 0 {
			continue // introduction of the file
		}
		c := &cases[len(cases)-1]
		if expectation, ok := strings.CutPrefix(line, "> "); ok {
			err = c.expect(expand(expectation))
		} else {
			c.request, err = appendUnescaped(c.request, expand(line))
		}
		if err != nil {
			t.Fatalf("%s:%d: %v", file, number+1, err)
		}
	}
	for _, c := range cases {
		if c.statuses == nil {
			t.Fatalf("%s: case %q expects no status", file, c.name)
		}
	}
	return cases
}

func (c *hostileCase) expect(expectation string) error {
	what, value, _ := strings.Cut(expectation, " ")
	switch what {
	case "status":
		c.statuses = []int{}
		for _, s := range strings.Fields(strings.ReplaceAll(value, "none", "")) {
			n, err := strconv.Atoi(s)
			if err != nil {
				return err
			}
			c.statuses = append(c.statuses, n)
		}
	case "says":
		c.says = value
	case "plain":
		c.plain = true
	case "forwarded":
		c.forwarded = append(c.forwarded, value)
	case "token":
		c.tokens = append(c.tokens, value)
	default:
		return fmt.Errorf("unknown expectation %q", what)
	}
	return nil
}

// repeated matches {N*text} without braces in text.
var repeated = regexp.MustCompile(`\{(\d+)\*([^{}]*)\}`)

func expand(line string) string {
	const query = "api-version=2018-02-01&resource=https://vault.azure.net"
	line = strings.NewReplacer(
		"{token}", tokenPath+"?"+query,
		"{query}", query,
		"{app service}", azure.AppServicePath+"?api-version=2019-08-01&resource=https://vault.azure.net",
		"{secret}", secret,
		"{end}", `Host: 127.0.0.1:8000\r\nConnection: close\r\n\r\n`,
		"{headers}", `Host: 169.254.169.254\r\nMetadata: true\r\nConnection: close\r\n\r\n`,
		"{default}", defaultID,
		"{other}", otherID,
		"{mapped}", mappedID,
		"{object}", objectID,
		"{arm}", resourceID,
	).Replace(line)
	return repeated.ReplaceAllStringFunc(line, func(s string) string {
		parts := repeated.FindStringSubmatch(s)
		n, _ := strconv.Atoi(parts[1])
		return strings.Repeat(parts[2], n)
	})
}

// appendUnescaped appends s, with the escapes \r, \n, \t, \0, \\ and \xNN replaced by their
// bytes.
func appendUnescaped(b []byte, s string) ([]byte, error) {
	for s != "" {
		if rest, ok := strings.CutPrefix(s, `\0`); ok {
			b, s = append(b, 0), rest
			continue
		}
		if s[0] != '\\' {
			b, s = append(b, s[0]), s[1:]
			continue
		}
		c, _, rest, err := strconv.UnquoteChar(s, 0)
		if err != nil {
			return nil, fmt.Errorf("bad escape at %q", s)
		}
		b, s = append(b, byte(c)), rest
	}
	return b, nil
}

// exchangeBytes sends bytes over a new connection and returns all bytes that the server
// sends until it closes the connection.
func exchangeBytes(t *testing.T, addr string, request []byte) []byte {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if len(request) == 0 {
		conn.(*net.TCPConn).CloseWrite()
	}
	// In a goroutine, because a server that refuses a large request does not read all of it.
	go conn.Write(request)
	answers, err := io.ReadAll(conn)
	if err != nil && len(answers) == 0 {
		t.Fatalf("no answer: %v", err)
	}
	return answers
}

func checkAnswers(t *testing.T, c hostileCase, answers []byte) {
	t.Helper()
	method, _, _ := strings.Cut(string(c.request[:min(8, len(c.request))]), " ")
	r := bufio.NewReader(bytes.NewReader(answers))
	var statuses []int
	var body []byte
	for {
		if _, err := r.Peek(1); err != nil {
			break
		}
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("answer %q: %v", answers, err)
		}
		if body, err = io.ReadAll(resp.Body); err != nil {
			t.Fatalf("answer %q: %v", answers, err)
		}
		statuses = append(statuses, resp.StatusCode)
		if resp.StatusCode >= 400 && !c.plain && method != http.MethodHead {
			checkErrorBody(t, resp, body)
		}
		if bytes.Contains(body, []byte(secret)) {
			t.Errorf("the secret was sent: %s", body)
		}
	}
	if !slices.Equal(statuses, c.statuses) {
		t.Errorf("got status %d, want %d; answers %q", statuses, c.statuses, answers)
	}
	if !bytes.Contains(body, []byte(c.says)) {
		t.Errorf("got body %q, want %q in it", body, c.says)
	}
}

func checkErrorBody(t *testing.T, resp *http.Response, body []byte) {
	t.Helper()
	var e errorBody
	err := json.Unmarshal(body, &e)
	if err != nil || e.Code == "" || e.Description == "" || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		t.Errorf("status %d with body %q, want IMDS's JSON", resp.StatusCode, body)
	}
}
