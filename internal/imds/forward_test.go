package imds_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/server"
)

const instance = "/metadata/instance?api-version=2021-02-01"

// forwardingTo returns a handler that forwards requests to an address.
func forwardingTo(t *testing.T, address string) *imds.Handler {
	cfg := config(&tokenSource{})
	cfg.Passthrough = azure.MetadataURL(address)
	return newHandler(t, cfg)
}

// TestForwardedHeader: a forwarded request has only a few of the caller's headers, none that
// IMDS refuses, and no hop-by-hop headers.
func TestForwardedHeader(t *testing.T) {
	machine := newDecoy(t)
	w := get(forwardingTo(t, machine.URL), instance,
		"User-Agent: some-sdk/1.0", "Accept: application/json", "X-Ms-Client-Request-Id: 7",
		"Cookie: a=b", "Authorization: Bearer x", "Forwarded: for=192.0.2.1", "X-Real-Ip: 192.0.2.1",
		"Connection: keep-alive, X-Hop", "X-Hop: 1", "Te: trailers", "Accept-Encoding: gzip")
	if w.Code != http.StatusOK || w.Body.String() != `{"decoy":true}` {
		t.Fatalf("got %d %s", w.Code, w.Body)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Content-Length": "14", "Server": "decoy", "Via": "1.1 imds-oidc-proxy",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("answer's %s: got %q, want %q", name, got, want)
		}
	}
	want := http.Header{
		"Metadata": {"true"}, "Via": {"1.1 imds-oidc-proxy"}, "User-Agent": {"some-sdk/1.0"},
		"Accept": {"application/json"}, "X-Ms-Client-Request-Id": {"7"},
	}
	if got := machine.headers[0]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("IMDS saw %v\nwant %v", got, want)
	}
}

// TestForwardedAnswer: the client gets IMDS's status, but not its hop-by-hop headers.
func TestForwardedAnswer(t *testing.T) {
	machine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Connection", "X-Hop")
		h.Set("X-Hop", "1")
		h.Set("Keep-Alive", "timeout=5")
		h.Set("X-Forwarded-For", "192.0.2.1")
		h.Set("Trailer", "X-Trailer")
		h.Set("Upgrade", "h2c")
		h.Set("X-Kept", "1")
		w.WriteHeader(http.StatusGone)
		io.WriteString(w, "upgrading")
		w.(http.Flusher).Flush() // causes a chunked answer
	}))
	defer machine.Close()
	w := get(forwardingTo(t, machine.URL), instance)
	if w.Code != http.StatusGone || w.Body.String() != "upgrading" || w.Header().Get("Content-Length") != "9" {
		t.Errorf("got %d %q %v", w.Code, w.Body, w.Header())
	}
	for _, name := range []string{"Connection", "X-Hop", "Keep-Alive", "X-Forwarded-For", "Trailer", "Transfer-Encoding", "Upgrade"} {
		if got, present := w.Header()[name]; present {
			t.Errorf("the answer has %s: %q", name, got)
		}
	}
	if w.Header().Get("X-Kept") != "1" {
		t.Errorf("got %v", w.Header())
	}
}

// TestUnusableIMDS: if another server answers in IMDS's place, the client gets an error in
// IMDS's format.
func TestUnusableIMDS(t *testing.T) {
	for _, test := range []struct {
		name   string
		cause  string // in the log
		answer http.HandlerFunc
	}{
		{"redirect", "status 302", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://imds.example.test"+tokenPath, http.StatusFound)
		}},
		{"upgrade", "status 101", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Upgrade", "h2c")
			w.WriteHeader(http.StatusSwitchingProtocols)
		}},
		{"too large, with its length", "larger than 1024 bytes", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1025")
			io.WriteString(w, strings.Repeat("x", 1025))
		}},
		{"too large, in chunks", "larger than 1024 bytes", func(w http.ResponseWriter, r *http.Request) {
			for range 1025 {
				io.WriteString(w, "x")
			}
		}},
		{"endless", "larger than 1024 bytes", func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := io.WriteString(w, strings.Repeat("x", 4096)); err != nil {
					return
				}
			}
		}},
		{"large header", "headers exceeded", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 1<<20))
		}},
		{"reset", "EOF", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }},
		{"cut off", "unexpected EOF", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}},
		{"hang", "deadline exceeded", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{"hang in the body", "deadline exceeded", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "x")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			machine := httptest.NewServer(test.answer)
			defer machine.Close()
			log, logs := observed(zap.ErrorLevel)
			cfg := config(&tokenSource{})
			cfg.Log = log
			cfg.Passthrough = azure.MetadataURL(machine.URL)
			timeout := time.Duration(0)
			if strings.HasPrefix(test.name, "hang") {
				timeout = 50 * time.Millisecond
			}
			cfg = cfg.WithForwardLimits(timeout, 1024, 0)
			checkUnavailable(t, get(newHandler(t, cfg), instance))
			for _, e := range logs.All() {
				if got := fmt.Sprint(e.ContextMap()["error"]); !strings.Contains(got, test.cause) {
					t.Errorf("logged %q, want %q", got, test.cause)
				}
			}
			if logs.Len() != 1 {
				t.Errorf("got %d lines, want one", logs.Len())
			}
		})
	}
	t.Run("refused connection", func(t *testing.T) {
		checkUnavailable(t, get(forwardingTo(t, "http://127.0.0.1:1"), instance))
	})
}

func checkUnavailable(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	body := decodeError(t, w)
	if w.Code != http.StatusForbidden || body.Code != "service_unavailable" || w.Header().Get("Location") != "" {
		t.Errorf("got %d %s %v", w.Code, w.Body, w.Header())
	}
}

// TestForwardingIsBounded: a request waits for a slot until its client closes the connection.
func TestForwardingIsBounded(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	machine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-release
	}))
	defer machine.Close()
	cfg := config(&tokenSource{})
	cfg.Passthrough = azure.MetadataURL(machine.URL)
	h := newHandler(t, cfg.WithForwardLimits(patience, 0, 1))
	first := make(chan int)
	go func() { first <- get(h, instance).Code }()
	select {
	case <-arrived:
	case got := <-first:
		t.Fatalf("got %d before IMDS was asked", got)
	}

	// The second request waits for the only slot until its client closes the connection.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	second := httptest.NewRecorder()
	h.ServeHTTP(second, instanceRequest(ctx))
	if body := decodeError(t, second); second.Code != http.StatusTooManyRequests || body.Code != "too_many_requests" {
		t.Errorf("got %d %s for the second request", second.Code, second.Body)
	}
	select {
	case <-arrived:
		t.Error("two requests reached IMDS at the same time")
	default:
	}
	close(release)
	if got := <-first; got != http.StatusOK {
		t.Errorf("got %d for the first request", got)
	}
}

// TestForwardingQueueIsBounded: if as many requests wait as there are slots, further requests
// are refused at once.
func TestForwardingQueueIsBounded(t *testing.T) {
	release := make(chan struct{})
	machine := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer machine.Close()
	cfg := config(&tokenSource{})
	cfg.Passthrough = azure.MetadataURL(machine.URL)
	h := newHandler(t, cfg.WithForwardLimits(patience, 0, 1))
	const accepted, refused = 2, 5 // one request is forwarded, and one waits
	statuses := make(chan int, accepted+refused)
	for range accepted + refused {
		go func() { statuses <- get(h, instance).Code }()
	}
	for range refused {
		if got := <-statuses; got != http.StatusTooManyRequests {
			t.Errorf("got %d before IMDS answered, want 429", got)
		}
	}
	close(release)
	for range accepted {
		if got := <-statuses; got != http.StatusOK {
			t.Errorf("got %d for a request that had waited, want 200", got)
		}
	}
}

// TestUnreadAnswerLosesItsSlot: a client that does not read its answer does not block other
// clients. The rest of its answer is dropped, which the client sees by the Content-Length.
func TestUnreadAnswerLosesItsSlot(t *testing.T) {
	body := strings.Repeat("x", 64<<10)
	machine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, body) }))
	defer machine.Close()
	cfg := config(&tokenSource{})
	cfg.Passthrough = azure.MetadataURL(machine.URL)
	h := newHandler(t, cfg.WithForwardLimits(patience, 0, 1))
	unread := &unreadAnswer{ResponseRecorder: httptest.NewRecorder(), begun: make(chan struct{}), read: make(chan struct{})}
	done := make(chan struct{})
	go func() { defer close(done); h.ServeHTTP(unread, instanceRequest(t.Context())) }()
	<-unread.begun
	if second := get(h, instance); second.Code != http.StatusOK || second.Body.String() != body {
		t.Errorf("got %d and %d bytes for the second request, want 200 and %d bytes", second.Code, second.Body.Len(), len(body))
	}
	close(unread.read)
	<-done
	if got := unread.Body.Len(); got >= len(body) || unread.Header().Get("Content-Length") != strconv.Itoa(len(body)) {
		t.Errorf("got %d bytes for the first request with the header %v, want fewer than its Content-Length", got, unread.Header())
	}
}

// TestClientsThatDoNotRead: while such clients hold all slots, a client that reads gets its
// answer. They have real connections, whose kernel buffers are full. The polite client waits
// for less than package server's deadline for a write, which would free the slots too.
func TestClientsThatDoNotRead(t *testing.T) {
	body := strings.Repeat("x", 500<<10)
	asked := make(chan struct{}, 100)
	machine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		io.WriteString(w, body)
	}))
	defer machine.Close()
	const slots = 4
	cfg := config(&tokenSource{})
	cfg.Passthrough = azure.MetadataURL(machine.URL)
	listener, err := server.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, listener, newHandler(t, cfg.WithForwardLimits(3*time.Second, 0, slots)))
	request := "GET " + instance + " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n"
	for range slots {
		c := dial(t, listener.Addr().String())
		c.Conn.(*net.TCPConn).SetReadBuffer(1024)
		c.send(request)
		<-asked
	}
	polite := dial(t, listener.Addr().String())
	polite.send(request)
	polite.wantStatus(http.StatusOK)
}

func instanceRequest(ctx context.Context) *http.Request {
	r := httptest.NewRequest(http.MethodGet, instance, nil).WithContext(ctx)
	r.Host = "169.254.169.254"
	r.Header.Set("Metadata", "true")
	return r
}

// unreadAnswer is an answer whose first write blocks until read is closed.
type unreadAnswer struct {
	*httptest.ResponseRecorder
	once        sync.Once
	begun, read chan struct{}
}

func (w *unreadAnswer) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.begun) })
	<-w.read
	return w.ResponseRecorder.Write(p)
}

// TestHalfClosedIsForwarded: a client that has closed its half of the connection, as nc -N
// does, gets IMDS's answer.
func TestHalfClosedIsForwarded(t *testing.T) {
	machine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "compute")
	}))
	defer machine.Close()
	h := forwardingTo(t, machine.URL)
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done() // net/http has read the end of the connection
		h.ServeHTTP(w, r)
	}))
	for range 10 { // select chooses at random if both a slot and the end of the client are ready
		c := dial(t, addr)
		c.send("GET " + instance + " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n")
		c.closeWrite()
		c.wantStatus(200)
	}
}

// TestLoop: if the proxy runs with a UID that is not exempt, the redirect leads its traffic
// back to it. It detects the loop when the request returns for the first time, answers 403
// and logs how to fix it.
func TestLoop(t *testing.T) {
	for _, test := range []struct {
		name string
		mesh func(*http.Request) // changes that a service mesh in the loop makes
	}{
		{"directly", func(r *http.Request) {}},
		{"through a mesh that adds headers", func(r *http.Request) {
			r.Header.Set("X-Forwarded-For", "192.0.2.1")
			r.Header.Set("Via", r.Header.Get("Via")+", 2 mesh")
		}},
		{"through a mesh that folds lines", func(r *http.Request) {
			r.Header["Via"] = []string{"2 mesh", "HTTP/" + r.Header.Get("Via") + " (comment)"}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			core, logs := observer.New(zap.ErrorLevel)
			var h http.Handler
			count := 0
			self := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				count++
				test.mesh(r)
				h.ServeHTTP(w, r)
			}))
			defer self.Close()
			cfg := config(&tokenSource{})
			cfg.Passthrough = azure.MetadataURL(self.URL)
			cfg.Log = zap.New(core)
			h = newHandler(t, cfg)

			w := get(h, instance)
			if body := decodeError(t, w); w.Code != http.StatusForbidden || body.Code != "server_error" {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
			if count != 1 {
				t.Errorf("the request came back %d times, want once", count)
			}
			entries := logs.All()
			if len(entries) != 1 || !strings.Contains(fmt.Sprint(entries[0].ContextMap()["error"]), "UID") {
				t.Errorf("got log %v, want one line with the fix", entries)
			}
		})
	}
}

// TestLoopWithoutVia: if a service mesh removes the Via header, the number of slots bounds
// the loop.
func TestLoopWithoutVia(t *testing.T) {
	var h http.Handler
	arrived := make(chan struct{}, 100)
	self := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		r.Header.Del("Via")
		h.ServeHTTP(w, r)
	}))
	defer self.Close()
	cfg := config(&tokenSource{})
	const slots = 4
	cfg.Passthrough = azure.MetadataURL(self.URL)
	h = newHandler(t, cfg.WithForwardLimits(100*time.Millisecond, 0, slots))
	if w := get(h, instance); w.Code != http.StatusForbidden && w.Code != http.StatusTooManyRequests {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	// When a request times out, a waiting request may get its slot. All began at almost the
	// same time, so each slot is used at most twice.
	if got := len(arrived); got > 2*slots {
		t.Errorf("the request came back %d times, want at most %d", got, 2*slots)
	}
}
