package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

// TestProbeLooksTwice: an answer is not believed where nobody listens any more before the
// request, or after the answer. That the listener's user counts, test/e2e shows with
// processes of two users.
func TestProbeLooksTwice(t *testing.T) {
	for name, test := range map[string]struct {
		answers int // after so many the listener closes
		want    error
	}{
		"stays":           {3, nil},
		"goes after two":  {2, errNoListener},
		"goes after one":  {1, errNoListener},
		"never was there": {0, syscall.ECONNREFUSED},
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
			go answer(listener, test.answers)
			port := uint16(listener.Addr().(*net.TCPAddr).Port)
			err = askOwnProxy(t.Context(), &http.Client{}, fmt.Sprintf("http://127.0.0.1:%d/readyz", port), port)
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// answer gives so many answers, and closes the listener before the last.
func answer(listener net.Listener, answers int) {
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
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") // the probe notices
	}
}

// TestProbeEndsWithItsContext: an interrupted probe says so, and what it saw last.
func TestProbeEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := probe(ctx, 1, probeAttemptTimeout)
	if err == nil || !strings.HasPrefix(err.Error(), "interrupted; last answer of http://127.0.0.1:1/readyz: ") {
		t.Errorf("got %v", err)
	}
}
