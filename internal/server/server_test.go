package server

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imds-oidc-proxy/test/kit/local"
)

const (
	// patience bounds each wait of these tests. Only a test that fails waits for so long.
	patience = 20 * time.Second

	// plenty is a connection limit that most tests do not reach.
	plenty = 1024

	request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
)

func ok(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }

// start serves a handler on a TCP port, until the test ends.
func start(t testing.TB, h http.HandlerFunc, most int) *Server {
	t.Helper()
	return startWith(t, Config{Handler: h, MaxConnections: most}, standardTimes)
}

func startWith(t testing.TB, cfg Config, times times) *Server {
	t.Helper()
	listener, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, listener, cfg, times)
}

// startInMemory is startWith for a synctest bubble.
func startInMemory(t testing.TB, cfg Config) (dial func() *client) {
	listener := local.NewPipes()
	startOn(t, listener, cfg, standardTimes)
	return func() *client { return newClient(t, listener.Dial(t)) }
}

func startOn(t testing.TB, listener net.Listener, cfg Config, times times) *Server {
	s := newServer(listener, cfg, times)
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// client is a connection with a deadline, so that a test fails instead of hanging.
type client struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func (s *Server) dial(t testing.TB) *client {
	t.Helper()
	conn, err := net.Dial("tcp", s.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return newClient(t, conn)
}

func newClient(t testing.TB, conn net.Conn) *client {
	conn.SetDeadline(time.Now().Add(patience))
	return &client{conn, t, bufio.NewReader(conn)}
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.t.Fatal(err)
	}
}

// wantAnswer reads one answer, and returns whether it closes the connection.
func (c *client) wantAnswer(status int) (ends bool) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != status {
		c.t.Errorf("got %d, want %d", resp.StatusCode, status)
	}
	return resp.Close
}

// wantClosed waits until the server closes the connection. Before that, it may answer an
// incomplete request with 400.
func (c *client) wantClosed() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if errors.Is(err, syscall.ECONNRESET) {
		err = nil
	}
	if err != nil || len(rest) != 0 && !strings.HasPrefix(string(rest), "HTTP/1.1 400 ") {
		c.t.Errorf("got %q, %v, want the connection closed", rest, err)
	}
}

// waitFor waits for a condition.
func waitFor(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// hanging is a handler that answers after release is closed.
type hanging struct{ arrived, release chan struct{} }

func newHanging() *hanging { return &hanging{make(chan struct{}, 100), make(chan struct{})} }

func (h *hanging) serve(w http.ResponseWriter, r *http.Request) {
	h.arrived <- struct{}{}
	<-h.release
	ok(w, r)
}

// wait waits until the handler has a request.
func (h *hanging) wait(t testing.TB) {
	t.Helper()
	select {
	case <-h.arrived:
	case <-time.After(patience):
		t.Fatal("no request has arrived")
	}
}

func TestSlowHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := startInMemory(t, Config{Handler: http.HandlerFunc(ok), MaxConnections: plenty})
		began := time.Now()
		silent, slow, second := dial(), dial(), dial()
		slow.send("GET / HTTP/1.1\r\nMetadata: tr")
		second.send(request)
		second.wantAnswer(200)
		second.send("GET /") // the time limit applies to the second request of a connection too
		for _, c := range []*client{silent, slow, second} {
			c.wantClosed()
		}
		if took := time.Since(began); took != standardTimes.header {
			t.Errorf("the connections ended after %s, want %s", took, standardTimes.header)
		}
	})
}

// TestSlowBody: a body that does not arrive does not delay the answer, and delays the close of
// the connection only for a limited time.
func TestSlowBody(t *testing.T) {
	for _, framing := range []string{"Content-Length: 100\r\n\r\nx", "Content-Length: 100000000\r\n\r\nx", "Transfer-Encoding: chunked\r\n\r\n5\r\nx"} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			c := startInMemory(t, Config{Handler: http.HandlerFunc(ok), MaxConnections: plenty})()
			go c.send("POST / HTTP/1.1\r\nHost: a\r\n" + framing)
			if ends := c.wantAnswer(200); !ends {
				t.Error("the connection goes on")
			}
			if took := time.Since(began); took != 0 {
				t.Errorf("the answer took %s", took)
			}
			c.wantClosed()
			if took := time.Since(began); took > standardTimes.body+time.Second {
				t.Errorf("the connection ended after %s", took)
			}
		})
	}
}

// TestNoRequestAfterABody: bytes that follow a body are not parsed as a request (request
// smuggling).
func TestNoRequestAfterABody(t *testing.T) {
	paths := make(chan string, 2)
	s := start(t, func(w http.ResponseWriter, r *http.Request) { paths <- r.URL.Path; ok(w, r) }, plenty)
	c := s.dial(t)
	c.send("POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /second HTTP/1.1\r\nHost: a\r\n\r\n")
	c.wantAnswer(200)
	c.wantClosed()
	if got := <-paths; got != "/first" || len(paths) != 0 {
		t.Errorf("got a request for %s, and %d more; want one for /first", got, len(paths))
	}
}

func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		c := startInMemory(t, Config{Handler: http.HandlerFunc(ok), MaxConnections: plenty})()
		go c.send(request + request)
		c.wantAnswer(200)
		c.wantAnswer(200)
		c.SetDeadline(time.Time{})
		c.wantClosed()
		if took := time.Since(began); took != standardTimes.idle {
			t.Errorf("the connection ended after %s, want %s", took, standardTimes.idle)
		}
	})
}

// TestSlowHandler: no time limit of the server ends a request whose handler takes long.
func TestSlowHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cancelled := errors.New("")
		c := startInMemory(t, Config{MaxConnections: plenty, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(10 * time.Minute)
			cancelled = r.Context().Err()
			ok(w, r)
		})})()
		c.SetDeadline(time.Time{})
		c.send(request)
		c.wantAnswer(200)
		if cancelled != nil {
			t.Errorf("its context ended: %v", cancelled)
		}
	})
}

// TestSlowReader: each write has its own time limit, after which the connection of a client
// that does not read is closed.
func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		written := make(chan error, 1)
		c := startInMemory(t, Config{MaxConnections: plenty, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var err error
			for err == nil {
				_, err = w.Write(make([]byte, 64<<10))
			}
			written <- err
		})})()
		c.SetDeadline(time.Time{})
		c.send(request)
		began := time.Now()
		for range 10 {
			time.Sleep(standardTimes.write * 9 / 10)
			if _, err := io.ReadFull(c, make([]byte, 64<<10)); err != nil {
				t.Fatal(err)
			}
		}
		<-written
		if took := time.Since(began); took > 10*standardTimes.write {
			t.Errorf("the connection was closed after %s", took)
		}
	})
}

// TestOneRequest: with Config.OneRequest, each answer closes its connection.
func TestOneRequest(t *testing.T) {
	s := startWith(t, Config{Handler: http.HandlerFunc(ok), MaxConnections: plenty, OneRequest: true}, standardTimes)
	c := s.dial(t)
	c.send(request + request)
	if ends := c.wantAnswer(200); !ends {
		t.Error("the answer does not end the connection")
	}
	c.wantClosed()
}

func observed(level zapcore.Level) (*zap.Logger, *observer.ObservedLogs) {
	core, logs := observer.New(level)
	return zap.New(core), logs
}

// TestConnectionNoise: net/http's messages are logged at debug level, for example about
// connections that are closed early, as Java and .NET do to probe. Panics are logged as errors.
func TestConnectionNoise(t *testing.T) {
	log, logs := observed(zap.DebugLevel)
	cfg := Config{Log: log, MaxConnections: plenty, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic("for the test")
		}
		w.WriteHeader(200)
		w.WriteHeader(200) // net/http logs that this call is superfluous
	})}
	s := startWith(t, cfg, standardTimes)
	s.dial(t).Close()
	s.dial(t).Conn.(*net.TCPConn).CloseWrite()
	next := s.dial(t)
	next.send(request)
	next.wantAnswer(200)
	waitFor(t, "a line of net/http's", func() bool { return logs.Len() > 0 })
	for _, e := range logs.All() {
		if e.Level > zap.DebugLevel {
			t.Errorf("logged at %v: %s %v", e.Level, e.Message, e.ContextMap())
		}
	}
	c := s.dial(t)
	c.send("GET /panic HTTP/1.1\r\nHost: a\r\n\r\n")
	c.wantClosed()
	if got := logs.FilterLevelExact(zap.ErrorLevel).FilterMessage("panic while serving a request").Len(); got != 1 {
		t.Errorf("a panic gave %d lines at error, want one", got)
	}
}
