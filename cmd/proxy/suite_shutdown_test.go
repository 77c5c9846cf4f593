package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/entra"
)

const (
	loadClients = 200
	// loadTimeout ends a client that got neither an answer nor an end.
	loadTimeout = 30 * time.Second
)

// startProcess runs the real program as a process of its own, without the
// environment of this one.
func startProcess(t *testing.T, p *pod) *exec.Cmd {
	t.Helper()
	p.environment["PROXY_LOG_LEVEL"] = "warn"
	var log syncBuffer
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("its log:\n%s", log.String())
		}
	})
	return startLogging(t, p, &log)
}

// startLogging is startProcess with a standard error of the test's own.
func startLogging(t *testing.T, p *pod, stderr io.Writer) *exec.Cmd {
	t.Helper()
	binary, err := os.Executable() // which is the proxy where it is called that: see TestMain
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary)
	cmd.Args[0] = "proxy"
	cmd.SysProcAttr = asSidecar()
	cmd.Stderr = stderr
	cmd.Env = []string{quickExit}
	for name, value := range p.environment {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	p.waitReady(t)
	return cmd
}

// quickExit spares each process the second for which the race detector's runtime would
// wait at its end.
const quickExit = "GORACE=atexit_sleep_ms=0"

// asSidecar has a program run as the sidecar does: as UID 1501, without a capability
// in the network namespace. A plain user has none either.
func asSidecar() *syscall.SysProcAttr {
	if os.Getuid() != 0 {
		return nil
	}
	sidecar := []syscall.SysProcIDMap{{ContainerID: 1501, HostID: 0, Size: 1}} // owner of the test's files still
	return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: sidecar, GidMappings: sidecar}
}

// load is what became of the requests of all clients.
type load struct {
	answered, lost atomic.Int64

	mu   sync.Mutex
	loss error // the first
}

// note counts a request that was sent on a connection that was made.
func (l *load) note(err error) {
	if err == nil {
		l.answered.Add(1)
		return
	}
	l.lost.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.loss == nil {
		l.loss = err
	}
}

// client asks without a pause until the port is closed: over a connection of its
// own for each request, or over one for as long as the proxy keeps it.
func (l *load) client(address, connection string) {
	for {
		conn, err := net.DialTimeout("tcp", address, loadTimeout)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
		if err != nil {
			l.note(err)
			return
		}
		r := bufio.NewReader(conn)
		for again := true; again; {
			again, err = askOnce(conn, r, connection)
			l.note(err)
		}
		conn.Close()
	}
}

// askOnce sends a request, reads the whole answer, and reports whether the
// connection may be used again.
func askOnce(conn net.Conn, r *bufio.Reader, connection string) (again bool, err error) {
	conn.SetDeadline(time.Now().Add(loadTimeout))
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nConnection: %s\r\n\r\n",
		tokenQuery+testResource, connection); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return false, err
	}
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("got %s", resp.Status)
	}
	return !resp.Close, nil
}

// TestNothingIsLostAtTheEnd: 200 clients that ask without a pause, and a SIGTERM
// amid them. Each request on a connection that was made gets its answer, and who
// comes later is refused.
func TestNothingIsLostAtTheEnd(t *testing.T) {
	for _, connection := range []string{"close", "keep-alive"} {
		t.Run(connection, func(t *testing.T) {
			p := newPod(t)
			proxy := startProcess(t, p)
			var all load
			var group sync.WaitGroup
			for range loadClients {
				group.Go(func() { all.client("127.0.0.1:"+p.port, connection) })
			}
			waitFor(t, "the load to be under way", func() bool { return all.answered.Load() > 10*loadClients })
			endProxy(t, proxy)
			group.Wait()
			if lost := all.lost.Load(); lost > 0 {
				t.Errorf("%d requests got no answer and %d did; the first: %v", lost, all.answered.Load(), all.loss)
			}
		})
	}
}

// TestRequestsInFlightAreFinished: 200 clients wait for one exchange when the
// SIGTERM comes, and all get its token. Those that would use their connection again are
// told not to.
func TestRequestsInFlightAreFinished(t *testing.T) {
	for _, connection := range []string{"close", "keep-alive"} {
		t.Run(connection, func(t *testing.T) {
			p := newPod(t)
			proxy := startProcess(t, p)
			p.idp.FailAlways(entra.FaultSlow(2 * time.Second))
			var all load
			var group sync.WaitGroup
			for range loadClients {
				group.Go(func() { all.client("127.0.0.1:"+p.port, connection) })
			}
			waitFor(t, "the exchange to be under way", func() bool { return p.idp.InFlight() > 0 })
			endProxy(t, proxy)
			group.Wait()
			if answered, lost := all.answered.Load(), all.lost.Load(); answered == 0 || lost > 0 {
				t.Errorf("%d answered, %d lost; the first: %v", answered, lost, all.loss)
			}
			if got := p.idp.Counts().Token; got != 1 {
				t.Errorf("got %d exchanges, want 1", got)
			}
		})
	}
}

// TestLateRequestIsAnswered: one whose connection was made before the signal, and is
// said after it. A silent connection beside it ends too.
func TestLateRequestIsAnswered(t *testing.T) {
	p := newPod(t)
	proxy := startProcess(t, p)
	dial(t, p.port)
	late, r := dial(t, p.port)
	if err := proxy.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := askOnce(late, r, "keep-alive"); err != nil {
		t.Errorf("the late request: %v", err)
	}
	waitForEnd(t, proxy)
}

// TestHalfARequestIsWaitedFor: the signal comes amid the header of a request, the first
// of its connection or a later one, also one that came in one piece with the one before.
// It is answered, when it has come.
func TestHalfARequestIsWaitedFor(t *testing.T) {
	const half = "GET " + tokenQuery
	for name, test := range map[string]struct {
		before string // has come, and its answer is read
		now    string
	}{
		"the first":     {"", half},
		"a later one":   {wholeRequest, half},
		"in the buffer": {wholeRequest + half, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t)
			proxy := startProcess(t, p)
			conn, r := dial(t, p.port)
			if test.before != "" {
				if _, err := io.WriteString(conn, test.before); err != nil {
					t.Fatal(err)
				}
				wantToken(t, r)
			}
			other, otherReader := dial(t, p.port)
			if _, err := askOnce(other, otherReader, "keep-alive"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, test.now); err != nil {
				t.Fatal(err)
			}
			if err := proxy.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			// The end of a quiet connection is when the proxy would drop this one.
			if _, err := otherReader.ReadByte(); !errors.Is(err, io.EOF) {
				t.Fatalf("the quiet connection: %v, want its end", err)
			}
			if _, err := fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n", testResource); err != nil {
				t.Fatal(err)
			}
			wantToken(t, r)
			waitForEnd(t, proxy)
		})
	}
}

const wholeRequest = "GET " + tokenQuery + testResource + " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n"

func wantToken(t *testing.T, r *bufio.Reader) {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("got %s, %v", resp.Status, err)
	}
}

// dial connects to the proxy.
func dial(t *testing.T, port string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, bufio.NewReader(conn)
}

// askSlowly has a request in flight that takes longer than a test would wait.
func askSlowly(t *testing.T, p *pod) {
	t.Helper()
	p.idp.FailAlways(entra.FaultSlow(20 * time.Second))
	conn, _ := dial(t, p.port)
	if _, err := io.WriteString(conn, wholeRequest); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the exchange to be under way", func() bool { return p.idp.InFlight() > 0 })
}

// TestSecondSignalEndsAtOnce: with a request in flight.
func TestSecondSignalEndsAtOnce(t *testing.T) {
	p := newPod(t)
	proxy := startProcess(t, p)
	askSlowly(t, p)
	if err := proxy.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end to begin", func() bool {
		resp, err := http.Get("http://127.0.0.1:" + p.admin + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	if err := proxy.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = proxy.Wait() // the exit code says it
	if code := proxy.ProcessState.ExitCode(); code != exitFailure {
		t.Errorf("got exit code %d, want %d", code, exitFailure)
	}
}

func endProxy(t *testing.T, proxy *exec.Cmd) {
	t.Helper()
	if err := proxy.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitForEnd(t, proxy)
}

// waitForEnd kills a proxy that takes longer than Kubernetes would give it.
func waitForEnd(t *testing.T, proxy *exec.Cmd) {
	t.Helper()
	defer time.AfterFunc(30*time.Second, func() { proxy.Process.Kill() }).Stop()
	if err := proxy.Wait(); err != nil {
		t.Errorf("the proxy ended with %v", err)
	}
}

func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(readyTimeout); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", readyTimeout, what)
		}
	}
}
