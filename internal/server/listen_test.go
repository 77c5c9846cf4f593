package server

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestBuffersAreInherited: accepted sockets have the listener's buffer sizes, which are twice
// the requested sizes, and do not grow.
func TestBuffersAreInherited(t *testing.T) {
	s := start(t, ok, plenty)
	client := s.dial(t)
	for range 100 {
		client.send(request)
		client.wantAnswer(200)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		for option, want := range map[int]int{unix.SO_RCVBUF: 2 * receiveBuffer, unix.SO_SNDBUF: 2 * sendBuffer} {
			err := control(c.Conn, func(fd int) error {
				got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
				if got != want {
					t.Errorf("option %d is %d, want %d", option, got, want)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
}

// TestListenFails: a second listener at the same address is an error.
func TestListenFails(t *testing.T) {
	s := start(t, ok, plenty)
	if l, err := Listen(t.Context(), s.listener.Addr().String()); err == nil {
		l.Close()
		t.Error("a second listener was opened at the same address")
	}
}
