package imds_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"

	"imds-oidc-proxy/internal/imds"
)

// Ten thousand connections opened and left hold no more than the limit, and an
// honest client is served at once.
func TestConnectionsOpenedAndLeft(t *testing.T) {
	const wanted, spare = 10_000, imds.MaxConnections + 500
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	// Both ends are in this process, so the limit of open files counts.
	count := min(wanted, int(files.Cur)-spare)
	if count < 2*imds.MaxConnections {
		t.Fatalf("the limit of open files, %d, is too low for this test", files.Cur)
	}
	addr := serve(t, newHandler(t, config(&tokenSource{})), imds.Limits{}, imds.MaxConnections)
	left := make([]*client, count)
	for i := range left {
		left[i] = dial(t, addr)
		if i%3 == 0 {
			left[i].send("GET /") // or as much of a request as keeps the server waiting
		}
	}
	c := dial(t, addr)
	c.send(honest)
	c.wantStatus(200)

	open := 0
	for _, c := range left {
		if !closedByPeer(t, c.Conn.(*net.TCPConn)) {
			open++
		}
	}
	if open >= imds.MaxConnections {
		t.Errorf("%d of %d connections are still open, want less than %d", open, count, imds.MaxConnections)
	}
	t.Logf("%d connections opened, %d still open", count, open)
}

// closedByPeer looks, without waiting, whether the other end has closed.
func closedByPeer(t *testing.T, conn *net.TCPConn) bool {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	err = raw.Control(func(fd uintptr) {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		closed = err != syscall.EAGAIN
	})
	if err != nil {
		t.Fatal(err)
	}
	return closed
}

// Connections with a request in progress are not closed to make room.
func TestRoomIsNotMadeOfRequests(t *testing.T) {
	const most = 4
	tokens := newHanging()
	addr := serve(t, newHandler(t, config(tokens)), imds.Limits{}, most)
	var working []*client
	for range most - 1 {
		c := dial(t, addr)
		c.send(honest)
		tokens.wait(t)
		working = append(working, c)
	}
	var idle []*client
	for range most {
		idle = append(idle, dial(t, addr))
	}
	for _, c := range idle[:len(idle)-1] {
		c.wantClosed()
	}
	close(tokens.release)
	last := idle[len(idle)-1]
	last.send(honest)
	for _, c := range append(working, last) {
		c.wantStatus(200)
	}
}

// Where every connection has a request in progress, the next one waits its turn,
// and a shutdown loses none of those accepted.
func TestConnectionsWaitTheirTurn(t *testing.T) {
	const most, clients = 2, 6
	tokens := newHanging()
	addr := serve(t, newHandler(t, config(tokens)), imds.Limits{}, most)
	var wg sync.WaitGroup
	for range clients {
		c := dial(t, addr)
		c.send(strings.Replace(honest, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1))
		wg.Go(func() { c.wantStatus(200) })
	}
	for range most {
		tokens.wait(t)
	}
	close(tokens.release)
	wg.Wait()
}

func TestShutdownAtTheLimit(t *testing.T) {
	tokens := newHanging()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := imds.NewServer(newHandler(t, config(tokens)), nil, imds.Limits{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(imds.LimitListener(inner, 1)) }()
	working := dial(t, inner.Addr().String())
	working.send(honest)
	tokens.wait(t)
	waiting := dial(t, inner.Addr().String()) // Accept has it, and no place for it

	done := make(chan error, 1)
	go func() { done <- server.Shutdown(context.Background()) }()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
	waiting.wantClosed()
	close(tokens.release)
	working.wantStatus(200)
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// A hundred clients, some of them rude, through few connections: nothing is
// counted twice, or for ever.
func TestLimitListenerLosesNoPlace(t *testing.T) {
	const most = 3
	tokens := newHanging()
	addr := serve(t, newHandler(t, config(tokens)), imds.Limits{}, most)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if i%2 == 0 {
				fmt.Fprint(conn, honest[:i])
			}
		})
	}
	wg.Wait()
	// As many connections as there are places, each with a request in progress.
	for range most {
		c := dial(t, addr)
		c.send(honest)
		tokens.wait(t)
		defer c.wantStatus(200)
	}
	close(tokens.release)
}
