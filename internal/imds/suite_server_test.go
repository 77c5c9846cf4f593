package imds_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/tokens"
)

const tokenRequest = "GET " + tokenPath + "?resource=" + vault + " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n"

// hanging is a token source that blocks until release is closed.
type hanging struct {
	arrived chan struct{}
	release chan struct{}
}

func newHanging() *hanging {
	return &hanging{arrived: make(chan struct{}, 100), release: make(chan struct{})}
}

func (s *hanging) Token(ctx context.Context, req tokens.Request) (tokens.Result, error) {
	s.arrived <- struct{}{}
	select {
	case <-s.release:
		return (&tokenSource{}).Token(ctx, req)
	case <-ctx.Done():
		return tokens.Result{}, ctx.Err()
	}
}

// wait waits until a request for a token blocks.
func (s *hanging) wait(t testing.TB) {
	t.Helper()
	select {
	case <-s.arrived:
	case <-time.After(patience):
		t.Fatal("no token was requested")
	}
}

// client is a connection with a deadline, so that a test fails instead of hanging.
type client struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func dial(t testing.TB, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
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

// closeWrite closes the client's half of the connection. The client can still read.
func (c *client) closeWrite() { c.Conn.(*net.TCPConn).CloseWrite() }

func (c *client) send(request string) {
	c.t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) wantStatus(want int) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != want {
		c.t.Errorf("got %d, want %d", resp.StatusCode, want)
	}
}

// TestSlowExchange: an exchange may take longer than the server's timeouts for reading and
// writing.
func TestSlowExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := newHanging()
		dial := serveInMemory(t, newHandler(t, config(source)))
		waiting := dial()
		waiting.send(tokenRequest)
		source.wait(t)
		time.Sleep(patience / 2)
		close(source.release)
		waiting.wantStatus(200)
	})
}

// TestProbeDuringExchange: a probe without the Metadata header is answered at once while an
// exchange blocks.
func TestProbeDuringExchange(t *testing.T) {
	source := newHanging()
	defer close(source.release)
	addr := serve(t, newHandler(t, config(source)))
	dial(t, addr).send(tokenRequest)
	source.wait(t) // it blocks until the end of the test
	probe := dial(t, addr)
	probe.send(strings.Replace(tokenRequest, "Metadata: true\r\n", "", 1))
	probe.wantStatus(400)
	if len(source.arrived) != 0 {
		t.Error("the probe requested a token")
	}
}

// TestClientCloses: if a client closes the connection, the context of its first wait ends at
// once, and that of the second wait, for a client that has only closed its half, after
// halfClosedWait. Other requests are not affected.
func TestClientCloses(t *testing.T) {
	source := newHanging()
	left := make(chan error, 2)
	cfg := config(&tokenSource{answer: func(ctx context.Context, req tokens.Request) (tokens.Result, error) {
		result, err := source.Token(ctx, req)
		left <- err
		return result, err
	}})
	addr := serve(t, newHandler(t, cfg))
	leaving := dial(t, addr)
	leaving.send(tokenRequest)
	source.wait(t)
	leaving.Close()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the exchange ended with %v, want it cancelled", err)
	}
	if err := <-left; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second wait ended with %v, want its own deadline", err)
	}
	close(source.release)
	next := dial(t, addr)
	next.send(tokenRequest)
	next.wantStatus(200)
}

// TestHalfClosedWaitsForItsToken: a client that closes its half of the connection during an
// exchange gets the token, or the error.
func TestHalfClosedWaitsForItsToken(t *testing.T) {
	for _, test := range []struct {
		name   string
		err    error
		status int
	}{
		{"a token", nil, 200},
		{"a refusal", &exchange.Error{Kind: exchange.UnknownIdentity, Code: 700016}, 400},
	} {
		t.Run(test.name, func(t *testing.T) {
			release := make(chan struct{})
			var source tokenSource
			source.answer = func(ctx context.Context, req tokens.Request) (tokens.Result, error) {
				select {
				case <-release:
					good := tokenSource{}
					result, _ := good.Token(ctx, req)
					return result, test.err
				case <-ctx.Done():
					return tokens.Result{}, ctx.Err()
				}
			}
			h := newHandler(t, config(&source))
			addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				context.AfterFunc(r.Context(), func() { close(release) }) // the token comes after the half-close
				h.ServeHTTP(w, r)
			}))
			c := dial(t, addr)
			c.send(tokenRequest)
			c.closeWrite()
			c.wantStatus(test.status)
		})
	}
}

// TestHalfClosed: net/http does not distinguish a client that closes its half of the
// connection after the request, as nc -N does, from one that has closed it. The client still
// gets the answer, which must not be an empty one with status 200. The event has the reason
// if the request was invalid.
func TestHalfClosed(t *testing.T) {
	for _, test := range []struct {
		name, request, refusal string
		status                 int
	}{
		{"refused", strings.Replace(tokenRequest, "Metadata: true\r\n", "", 1), "no_metadata_header", 400},
		{"not served", strings.Replace(tokenRequest, tokenPath, "/latest", 1), "not_found", 404},
		{"waiting for an exchange", tokenRequest, "", 500},
	} {
		t.Run(test.name, func(t *testing.T) {
			events := make(chan imds.Event, 1)
			cfg := config(newHanging())
			cfg.Observe = func(_ *http.Request, e imds.Event) { events <- e }
			h := newHandler(t, cfg)
			addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				<-r.Context().Done() // net/http has read the end of the connection
				h.ServeHTTP(w, r)
			}))

			c := dial(t, addr)
			c.send(test.request)
			c.closeWrite()
			c.wantStatus(test.status)
			if e := <-events; e.Refusal != test.refusal || e.ClientLeft() != (test.refusal == "") {
				t.Errorf("observed %+v", e)
			}
		})
	}
}
