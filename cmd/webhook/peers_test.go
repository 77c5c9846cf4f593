package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// slowClient connects as a client, writes text and then does nothing.
func slowClient(t *testing.T, address, text string) {
	t.Helper()
	connection, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	if _, err := io.WriteString(connection, text); err != nil {
		t.Fatal(err)
	}
}

// answerOf returns the status of a small request, or the error.
func answerOf(address string) string {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	answer, err := client.Post("https://"+address+mutatePath, "application/json", strings.NewReader("{}"))
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return fmt.Sprint(answer.StatusCode, err)
}

// TestSlowClients checks that requests are answered while other clients hold all connections and all
// memory that they can. Without evictions they would get 503 after admitTimeout, or no answer.
func TestSlowClients(t *testing.T) {
	const size = 512 << 10
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(make([]byte, r.ContentLength))
	})
	post := func(announced int, sent string) string {
		return "POST " + mutatePath + " HTTP/1.1\r\nHost: hook\r\nContent-Length: " + strconv.Itoa(announced) + "\r\n\r\n" + sent
	}
	for _, test := range []struct{ name, text string }{
		{"no request", ""},
		{"an unfinished header", "POST " + mutatePath + " HTTP/1.1\r\nHost: hook\r\n"},
		{"no body", post(maxBody, "")},
		{"an unfinished body", post(maxBody, strings.Repeat("x", 3*partSize))},
		{"an unfinished body of unknown length", "POST " + mutatePath + " HTTP/1.1\r\nHost: hook\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"},
		{"an answer that is not read", post(size, strings.Repeat("x", size))},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := serveOnLoopback(t, loaded(t, 1), tls.VersionTLS13, handler)
			for range maxConnections {
				slowClient(t, r.address, test.text)
			}
			for range 3 {
				if got := answerOf(r.address); got != "200 <nil>" {
					t.Errorf("got %s, want 200", got)
				}
			}
			if testutil.ToFloat64(r.peers.metrics.evicted) == 0 {
				t.Error("no connection was evicted: the test is not at the limit")
			}
		})
	}
}

// TestOneConnectionIsOneRequest checks that a client cannot send several requests at the same time
// over one connection.
func TestOneConnectionIsOneRequest(t *testing.T) {
	r := serveOnLoopback(t, loaded(t, 1), tls.VersionTLS13, http.NotFoundHandler())
	connection, err := tls.Dial("tcp", r.address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if got := connection.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("the protocol is %q, want http/1.1", got)
	}
}

// join adds a connection of a client that sends nothing.
func join(t *testing.T, p *peers) *peer {
	t.Helper()
	conn, other := net.Pipe()
	t.Cleanup(func() { other.Close() })
	c, err := p.admit(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestConnectionLimit checks that a connection beyond the limit waits for the grace period, that it
// then takes the place of the one that has waited the longest, and never of one whose request is
// worked on.
func TestConnectionLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(newMetrics())
		working := join(t, p)
		working.work()
		oldest := join(t, p)
		time.Sleep(grace / 2)
		for len(p.open) < maxConnections {
			join(t, p)
		}
		began := time.Now()
		next := join(t, p)
		if waited := time.Since(began); waited != grace-grace/2 {
			t.Errorf("waited for %s, want %s", waited, grace-grace/2)
		}
		if !oldest.gone || working.gone || next.gone || len(p.open) != maxConnections || testutil.ToFloat64(p.metrics.evicted) != 1 {
			t.Errorf("oldest gone: %t, working gone: %t, next gone: %t, %d connections", oldest.gone, working.gone, next.gone, len(p.open))
		}
	})
}

// TestNoPlaceForAConnection checks that a connection waits while all others are worked on, until one
// is closed or the port is.
func TestNoPlaceForAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(newMetrics())
		var last *peer
		for range maxConnections {
			last = join(t, p)
			last.work()
		}
		ctx, closePort := context.WithCancel(t.Context())
		got := make(chan error)
		admit := func() {
			conn, _ := net.Pipe()
			_, err := p.admit(ctx, conn)
			got <- err
		}
		go admit()
		time.Sleep(time.Hour)
		last.Close()
		if err := <-got; err != nil {
			t.Error(err)
		}
		for c := range p.open {
			c.work()
		}
		go admit()
		synctest.Wait()
		closePort()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
	})
}

// TestMemoryLimit checks that memory beyond the limit is waited for, that a client which does not
// send is closed after the grace period, and that the oldest request exceeds the limit where the others
// wait for the server.
func TestMemoryLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(newMetrics())
		reserve := func(c *peer, bytes int64) error { return c.reserve(t.Context(), &p.receiving, bytes) }
		slow := join(t, p)
		time.Sleep(time.Millisecond)
		complete := join(t, p)
		time.Sleep(time.Millisecond)
		next := join(t, p)
		if err := errors.Join(reserve(slow, 1), reserve(complete, receivingBudget-1)); err != nil {
			t.Fatal(err)
		}
		complete.work()
		began := time.Now()
		if err := reserve(next, 1); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited != grace || !slow.gone {
			t.Errorf("waited for %s, slow client gone: %t; want %s, true", waited, slow.gone, grace)
		}
		if err := reserve(slow, 1); !errors.Is(err, errEvicted) {
			t.Errorf("got %v, want %v", err, errEvicted)
		}
		next.work()
		if err := reserve(complete, maxBody); err != nil || p.receiving.used != receivingBudget+maxBody {
			t.Errorf("the oldest request: got %v with %d bytes", err, p.receiving.used)
		}
		complete.release()
		next.release()
		if p.receiving.used != 0 {
			t.Errorf("%d bytes are in use at the end", p.receiving.used)
		}
	})
}

// TestUnreadAnswer checks that an answer that is not read gives way earlier than a request that is
// not sent, and that each kind of memory has its own limit.
func TestUnreadAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPeers(newMetrics())
		sending, receiving, next := join(t, p), join(t, p), join(t, p)
		if err := errors.Join(sending.reserve(t.Context(), &p.sending, sendingBudget), receiving.reserve(t.Context(), &p.receiving, receivingBudget)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		time.Sleep(time.Millisecond)
		next.await() // its request is not the oldest
		if err := next.reserve(t.Context(), &p.sending, 1); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited != unread || !sending.gone || receiving.gone {
			t.Errorf("waited for %s, sending gone: %t, receiving gone: %t; want %s, true, false", waited, sending.gone, receiving.gone, unread)
		}
	})
}
