package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestProbeChecksListenerTwice: the probe accepts an answer only if the port has a listener both
// before the request and after the answer. test/e2e tests that the listener must belong to the
// proxy's user, with processes of two users.
func TestProbeChecksListenerTwice(t *testing.T) {
	for name, test := range map[string]struct {
		answers int // the listener is closed before the last of these
		want    error
	}{
		"listener stays open":      {3, nil},
		"closed after two answers": {2, errNoListener},
		"closed after one answer":  {1, errNoListener},
		"no listener":              {0, syscall.ECONNREFUSED},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			if test.answers == 0 {
				listener.Close()
			}
			go serveAnswers(listener, test.answers)
			port := uint16(listener.Addr().(*net.TCPAddr).Port)
			err = askOwnProxy(t.Context(), &http.Client{}, fmt.Sprintf("http://127.0.0.1:%d/readyz", port), port)
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// serveAnswers answers this many requests, and closes the listener before the last answer.
func serveAnswers(listener net.Listener, answers int) {
	for ; answers > 0; answers-- {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := conn.Read(make([]byte, 4096)); err != nil {
			return
		}
		if answers == 1 {
			listener.Close()
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") // if this fails, the probe reports it
	}
}

// TestProbeInterrupted: an interrupted probe reports the interruption and the last answer.
func TestProbeInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := probe(ctx, 1, probeAttemptTimeout)
	if err == nil || !strings.HasPrefix(err.Error(), "interrupted; last answer of http://127.0.0.1:1/readyz: ") {
		t.Errorf("got %v, want an error that says interrupted, with the last answer", err)
	}
}

// TestExplainRefusal: a refused connection has another reason if the proxy listens: the port
// guard. test/e2e tests it with a real guard.
func TestExplainRefusal(t *testing.T) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(listener.Addr().(*net.TCPAddr).Port)
	other := errors.New("503 Service Unavailable: no token")
	for name, test := range map[string]struct {
		last error
		want string
	}{
		"refused":  {syscall.ECONNREFUSED, fmt.Sprintf("although the proxy listens: the port guard of proxy-init expects another user or group; set its --proxy-uid (PROXY_UID) to %d", os.Getuid())},
		"answered": {other, other.Error()},
	} {
		if got := explainRefusal(port, test.last); !errors.Is(got, test.last) || !strings.Contains(got.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, got, test.want)
		}
	}
	listener.Close()
	if got := explainRefusal(port, syscall.ECONNREFUSED); got != syscall.ECONNREFUSED {
		t.Errorf("no listener: got %v, want %v", got, syscall.ECONNREFUSED)
	}
}
