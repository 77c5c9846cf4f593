package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestProbeLooksTwice: an answer is not believed where nobody listens any more once it
// has come. That the listener's user counts, test/e2e shows with processes of two users.
func TestProbeLooksTwice(t *testing.T) {
	for name, test := range map[string]struct {
		stays bool
		want  string
	}{
		"stays": {true, ""},
		"goes":  {false, errNoListener.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go answerOnce(listener, test.stays)
			port := uint16(listener.Addr().(*net.TCPAddr).Port)
			err = askOwnProxy(t.Context(), &http.Client{}, fmt.Sprintf("http://127.0.0.1:%d/readyz", port), port)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// answerOnce answers one request, having closed the listener unless it stays.
func answerOnce(listener net.Listener, stays bool) {
	conn, err := listener.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 4096)); err != nil {
		return
	}
	if !stays {
		listener.Close()
	}
	_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") // the probe notices
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
