package server

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// TestDrainEndsSilentConnections: a connection on which no byte arrives, for example of a
// client that probes the port, delays the drain by silentTime only.
func TestDrainEndsSilentConnections(t *testing.T) {
	s := start(t, ok, plenty)
	s.dial(t)
	waitFor(t, "the connection to be accepted", func() bool { return s.open() == 1 })
	began := time.Now()
	if err := s.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < silentTime || took >= standardTimes.header {
		t.Errorf("the drain took %s, want slightly more than %s", took, silentTime)
	}
}

// TestDrainWaits: a request in progress is answered, and the answer closes its connection.
// New connections are refused.
func TestDrainWaits(t *testing.T) {
	h := newHanging()
	s := start(t, h.serve, plenty)
	working, idle := s.dial(t), s.dial(t)
	idle.send(request)
	h.wait(t)
	h.release <- struct{}{}
	idle.wantAnswer(200)
	working.send(request)
	h.wait(t)
	done := make(chan error, 1)
	go func() { done <- s.Drain(context.Background()) }()
	idle.wantClosed()
	if conn, err := net.Dial("tcp", s.listener.Addr().String()); err == nil {
		conn.Close()
		t.Error("a new connection was accepted")
	}
	close(h.release)
	if ends := working.wantAnswer(200); !ends {
		t.Error("the answer does not end its connection")
	}
	if err := <-done; err != nil {
		t.Errorf("Drain: %v", err)
	}
}

// TestDrainIsBounded: Drain returns when its context ends, with the context's error.
func TestDrainIsBounded(t *testing.T) {
	h := newHanging()
	defer close(h.release)
	s := start(t, h.serve, plenty)
	s.dial(t).send(request)
	h.wait(t)
	ctx, cancel := context.WithTimeout(t.Context(), settleTime)
	defer cancel()
	if err := s.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the end of the context", err)
	}
}

// TestEndIdle: a connection is ended only if it has no request in progress and no received
// bytes in the kernel.
func TestEndIdle(t *testing.T) {
	inner, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(inner, Config{MaxConnections: plenty})
	listener := acceptor{s}
	defer listener.Close()
	for _, test := range []struct {
		name    string
		state   state
		sent    string
		elapsed time.Duration
		want    state
	}{
		{"silent, early", silent, "", 0, silent},
		{"silent, late", silent, "", silentTime, ended},
		{"silent, with received bytes", silent, "x", silentTime, silent},
		{"idle", idle, "", 0, ended},
		{"idle, with received bytes", idle, "x", 0, idle},
		{"reading, early", reading, "", standardTimes.header - 1, reading},
		{"reading, late", reading, "", standardTimes.header, ended},
		{"reading, late, with received bytes", reading, "x", standardTimes.header, reading},
		{"serving", serving, "", time.Hour, serving},
		{"finished", finished, "", time.Hour, finished},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := s.dial(t)
			accepted, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer accepted.Close()
			c := accepted.(*conn)
			client.send(test.sent)
			if test.sent != "" {
				waitFor(t, "a byte", c.hasArrived)
			}
			c.state = test.state
			if left := s.endIdle(test.elapsed); left != 1 {
				t.Errorf("%d connections left, want 1: it is not closed yet", left)
			}
			if c.state != test.want {
				t.Errorf("state %d, want %d", c.state, test.want)
			}
			if test.want != ended {
				return
			}
			if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("read %d bytes, %v, want the end", n, err)
			}
		})
	}
	if left := s.endIdle(time.Hour); left != 0 {
		t.Errorf("%d connections left, want none", left)
	}
}
