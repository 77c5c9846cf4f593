package server

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestHeaderEnd(t *testing.T) {
	for _, test := range []struct {
		name, header, behind string
	}{
		{"carriage returns", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET /"},
		{"line feeds alone", "GET / HTTP/1.1\nHost: a\n\n", "\n"},
		{"no fields", "GET / HTTP/1.0\r\n\r\n", "\r\n"},
		{"empty lines before", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "x"},
		{"a carriage return too many is text", "GET / HTTP/1.1\r\n\r\r\nx: y\r\n\r\n", ""},
		{"white space is text", "GET / HTTP/1.1\r\na: b\r\n \r\n\r\n", "\r\n"},
	} {
		for step := range len(test.header) { // in parts of each size
			var h header
			text, at := test.header+test.behind, 0
			for ended := false; !ended; {
				if at == len(text) {
					t.Fatalf("%s: in steps of %d the end was not seen", test.name, step+1)
				}
				var n int
				n, ended = h.take([]byte(text[at:min(at+step+1, len(text))]))
				at += n
			}
			if at != len(test.header) || h.bytes != len(test.header) || h.lines != strings.Count(test.header, "\n") {
				t.Errorf("%s: in steps of %d the header ended after %d bytes and %d lines (counted %d)", test.name, step+1, at, h.lines, h.bytes)
			}
		}
	}
}

// TestHeaderBounds: the largest allowed header is accepted, and the next larger one refused.
func TestHeaderBounds(t *testing.T) {
	s := start(t, ok, plenty)
	start := "GET / HTTP/1.1\r\nHost: a\r\n"
	lines := func(n int) string { return start + strings.Repeat("a: b\r\n", n-3) + "\r\n" }
	size := func(n int) string {
		return start + "X: " + strings.Repeat("a", n-len(start)-len("X: \r\n\r\n")) + "\r\n\r\n"
	}
	for _, test := range []struct {
		name, request string
		status        int
	}{
		{"most lines", lines(maxHeaderLines), 200},
		{"a line too many", lines(maxHeaderLines + 1), 431},
		{"most bytes", size(maxHeaderBytes), 200},
		{"a byte too many", size(maxHeaderBytes + 1), 431},
		{"many lines that end nowhere", start + strings.Repeat("aaa:\r\n", 3147), 431},
		{"empty lines that end nowhere", strings.Repeat("\r\n", maxHeaderLines+1), 431},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := s.dial(t)
			c.send(test.request)
			ends := c.wantAnswer(test.status)
			if ends != (test.status == 431) {
				t.Errorf("the connection ends: %t", ends)
			}
			if test.status == 431 {
				c.wantClosed()
			}
		})
	}
	// Each request of a connection is counted separately.
	c := s.dial(t)
	for range 3 {
		c.send(lines(maxHeaderLines))
		c.wantAnswer(200)
	}
}

// TestNothingFollowsARefusal: nothing is written after the answer that refuses a header, even
// though net/http answers the error that it gets.
func TestNothingFollowsARefusal(t *testing.T) {
	s := start(t, ok, plenty)
	c := s.dial(t)
	c.send("GET / HTTP/1.1\r\nX: " + strings.Repeat("a", maxHeaderBytes))
	if got, err := io.ReadAll(c.r); err != nil || string(got) != tooLarge {
		t.Errorf("got %q, %v, want %q", got, err, tooLarge)
	}
}

// TestFoldedLine: a header with a folded line is refused, in parts of each size, also in a
// pipelined request.
func TestFoldedLine(t *testing.T) {
	const begin = "GET / HTTP/1.1\r\nHost: a\r\n"
	for _, test := range []struct {
		name, header string
		folded       bool
	}{
		{"a value on the next line", begin + "Metadata:\r\n true\r\n\r\n", true},
		{"a tab", begin + "Metadata:\r\n\ttrue\r\n\r\n", true},
		{"the end of a value", begin + "Metadata: tr\r\n  ue\r\n\r\n", true},
		{"a line feed alone", "GET / HTTP/1.1\nHost: a\n X-Forwarded-For: 192.0.2.1\n\n", true},
		{"white space alone", begin + " \r\n\r\n", true},
		{"the first header line", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", true},
		{"white space around a value", begin + "Metadata: \t true \t \r\n\r\n", false},
		{"an empty value", begin + "X:\r\nY: \r\n\r\n", false},
		{"empty lines before", "\r\n\r\n" + begin + "\r\n", false},
	} {
		for step := 1; step <= len(test.header); step++ {
			var h header
			for rest := test.header; rest != ""; {
				n := min(step, len(rest))
				h.take([]byte(rest[:n]))
				rest = rest[n:]
			}
			if h.folded != test.folded {
				t.Errorf("%s: in steps of %d: got %t, want %t", test.name, step, h.folded, test.folded)
			}
		}
	}
	s := start(t, ok, plenty)
	c := s.dial(t)
	c.send(begin + "\r\n" + begin + "X: a\r\n b\r\n\r\n")
	c.wantAnswer(200)
	if ends := c.wantAnswer(400); !ends {
		t.Error("the connection stays open")
	}
	c.wantClosed()
}

// FuzzHeader: a header ends where net/http finds its end, if net/http accepts it.
func FuzzHeader(f *testing.F) {
	f.Add("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n")
	f.Add("GET / HTTP/1.1\nHost: a\n b\n\t\n\nrest")
	f.Add("GET / HTTP/1.1\r\nHost: a\r\nMetadata:\r\n true\r\n\r\n")
	f.Add("GET / HTTP/1.1\r\n\r\r\n: \r\n\r\n")
	f.Add("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\r\nGET")
	f.Fuzz(func(t *testing.T, text string) {
		r := bufio.NewReaderSize(strings.NewReader(text), 1<<20)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		want := len(text) - r.Buffered()
		var h header
		if n, ended := h.take([]byte(text)); n != want || !ended {
			t.Errorf("%q: the header ends after %d bytes (%t), and for net/http after %d", text, n, ended, want)
		}
	})
}
