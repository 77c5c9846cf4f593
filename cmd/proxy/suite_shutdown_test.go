package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/test/kit/entra"
)

const (
	loadClients = 200
	// loadTimeout bounds how long a client waits for an answer or for the end of its connection.
	loadTimeout = 30 * time.Second
)

// startProcess runs the real program as a separate process, with only the environment of the
// pod.
func startProcess(t *testing.T, p *pod) *exec.Cmd {
	t.Helper()
	p.environment["PROXY_LOG_LEVEL"] = "warn"
	var log syncBuffer
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the proxy:\n%s", log.String())
		}
	})
	return startProcessWithLog(t, p, &log)
}

// startProcessWithLog is startProcess with this standard error.
func startProcessWithLog(t *testing.T, p *pod, stderr io.Writer) *exec.Cmd {
	t.Helper()
	binary, err := os.Executable() // which runs main if its name is proxy: see TestMain
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

// quickExit removes the delay of one second with which a process exits that was built with the
// race detector.
const quickExit = "GORACE=atexit_sleep_ms=0"

// asSidecar makes a program run as the sidecar does: as UID 1501, without capabilities in the
// network namespace. If the test does not run as root, the program has none anyway.
func asSidecar() *syscall.SysProcAttr {
	if os.Getuid() != 0 {
		return nil
	}
	sidecar := []syscall.SysProcIDMap{{ContainerID: 1501, HostID: 0, Size: 1}} // it still owns the test's files
	return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: sidecar, GidMappings: sidecar}
}

// load counts the results of the requests of all clients.
type load struct {
	answered, lost atomic.Int64

	mu        sync.Mutex
	firstLoss error
}

// note counts a request that was sent on an established connection.
func (l *load) note(err error) {
	if err == nil {
		l.answered.Add(1)
		return
	}
	l.lost.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.firstLoss == nil {
		l.firstLoss = err
	}
}

// client sends requests without a pause until the port is closed: each on a new connection, or
// on one connection for as long as the proxy keeps it open.
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
		for reusable := true; reusable; {
			reusable, err = askOnce(conn, r, connection)
			l.note(err)
		}
		conn.Close()
	}
}

// askOnce sends a request, reads the complete answer, and reports whether the connection can be
// used for another request.
func askOnce(conn net.Conn, r *bufio.Reader, connection string) (reusable bool, err error) {
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

// TestGracefulShutdownLosesNothing: SIGTERM arrives while 200 clients send requests without a pause.
// Each request on an established connection is answered, and later connections are refused.
func TestGracefulShutdownLosesNothing(t *testing.T) {
	for _, connection := range []string{"close", "keep-alive"} {
		t.Run(connection, func(t *testing.T) {
			p := newPod(t)
			proxy := startProcess(t, p)
			var all load
			var group sync.WaitGroup
			for range loadClients {
				group.Go(func() { all.client("127.0.0.1:"+p.port, connection) })
			}
			waitFor(t, "the first answers", func() bool { return all.answered.Load() > 10*loadClients })
			stopProxy(t, proxy)
			group.Wait()
			if lost := all.lost.Load(); lost > 0 {
				t.Errorf("got %d requests without an answer and %d answered, want none without; the first error: %v", lost, all.answered.Load(), all.firstLoss)
			}
		})
	}
}

// TestRequestsInFlightAreFinished: 200 clients wait for one exchange when SIGTERM arrives, and all
// get its token. The answers on keep-alive connections say Connection: close, so that no client
// loses another request on them.
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
			waitFor(t, "the exchange to begin", func() bool { return p.idp.InFlight() > 0 })
			stopProxy(t, proxy)
			group.Wait()
			if answered, lost := all.answered.Load(), all.lost.Load(); answered == 0 || lost > 0 {
				t.Errorf("got %d requests answered and %d lost, want all answered; the first error: %v", answered, lost, all.firstLoss)
			}
			if got := p.idp.Counts().Token; got != 1 {
				t.Errorf("got %d exchanges, want 1", got)
			}
		})
	}
}

// TestLateRequestIsAnswered: a request is answered if its connection was made before the signal,
// even if the request is sent after it. Another connection that never sends a request does not
// prevent the shutdown.
func TestLateRequestIsAnswered(t *testing.T) {
	p := newPod(t)
	proxy := startProcess(t, p)
	dial(t, p.port)
	late, r := dial(t, p.port)
	if err := proxy.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := askOnce(late, r, "keep-alive"); err != nil {
		t.Errorf("request after the signal: got error %v, want an answer", err)
	}
	waitForExit(t, proxy)
}

// TestIncompleteRequestIsAnswered: SIGTERM arrives when the proxy has received half of a request
// header. The proxy waits for the rest and answers the request, whether it is the first of its
// connection or a later one, and even if the half arrived in one segment with the previous request.
func TestIncompleteRequestIsAnswered(t *testing.T) {
	const half = "GET " + tokenQuery
	for name, test := range map[string]struct {
		before string // sent first; the test then reads one answer
		now    string // sent immediately before the signal
	}{
		"first request":                   {"", half},
		"later request":                   {completeRequest, half},
		"half sent with previous request": {completeRequest + half, ""},
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
			// When the proxy closes the idle connection, it would also close this one if it
			// took it for idle.
			if _, err := otherReader.ReadByte(); !errors.Is(err, io.EOF) {
				t.Fatalf("idle connection: got %v, want EOF", err)
			}
			if _, err := fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n", testResource); err != nil {
				t.Fatal(err)
			}
			wantToken(t, r)
			waitForExit(t, proxy)
		})
	}
}

const completeRequest = "GET " + tokenQuery + testResource + " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n"

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

// startSlowRequest sends a request that stays in flight longer than the test waits.
func startSlowRequest(t *testing.T, p *pod) {
	t.Helper()
	p.idp.FailAlways(entra.FaultSlow(20 * time.Second))
	conn, _ := dial(t, p.port)
	if _, err := io.WriteString(conn, completeRequest); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the exchange to begin", func() bool { return p.idp.InFlight() > 0 })
}

// TestSecondSignalEndsImmediately: a second SIGTERM ends the proxy although a request is in flight.
func TestSecondSignalEndsImmediately(t *testing.T) {
	p := newPod(t)
	proxy := startProcess(t, p)
	startSlowRequest(t, p)
	if err := proxy.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the shutdown to begin", func() bool {
		resp, err := http.Get("http://127.0.0.1:" + p.admin + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusServiceUnavailable
	})
	wantEndBySecondSignal(t, proxy)
}

// wantEndBySecondSignal sends SIGTERM to a proxy that is shutting down, and checks how it ends.
func wantEndBySecondSignal(t *testing.T, proxy *exec.Cmd) {
	t.Helper()
	if err := proxy.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = proxy.Wait() // the exit code is checked below
	if code := proxy.ProcessState.ExitCode(); code != exitFailure {
		t.Errorf("got exit code %d, want %d", code, exitFailure)
	}
}

// TestShutdownDelay: until --shutdown-delay has passed after SIGTERM, the proxy is ready and accepts
// connections. A second SIGTERM ends it at once.
func TestShutdownDelay(t *testing.T) {
	p := newPod(t)
	p.environment["PROXY_SHUTDOWN_DELAY"] = "1h"
	var log syncBuffer
	proxy := startProcessWithLog(t, p, &log)
	if err := proxy.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the delay to begin", func() bool { return strings.Contains(log.String(), "delaying the shutdown") })
	p.waitReady(t)
	conn, r := dial(t, p.port)
	if _, err := askOnce(conn, r, "close"); err != nil {
		t.Errorf("request during the delay: got error %v, want an answer", err)
	}
	wantEndBySecondSignal(t, proxy)
}

// TestShutdownAfterDelay: after the delay, the proxy shuts down as without one.
func TestShutdownAfterDelay(t *testing.T) {
	p := newPod(t)
	p.environment["PROXY_SHUTDOWN_DELAY"] = "1ms"
	stopProxy(t, startProcess(t, p))
}

// TestWaitForShutdown: the shutdown begins exactly after the delay, or at once if a part fails.
func TestWaitForShutdown(t *testing.T) {
	for name, test := range map[string]struct {
		delay        time.Duration
		signal, fail time.Duration // when they happen; 0: never
		want         time.Duration
	}{
		"no delay":         {0, time.Second, 0, time.Second},
		"delay":            {10 * time.Second, time.Second, 0, 11 * time.Second},
		"failure":          {10 * time.Second, 0, time.Second, time.Second},
		"failure in delay": {10 * time.Second, time.Second, 3 * time.Second, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				after := func(d time.Duration) context.Context {
					if d == 0 {
						return t.Context()
					}
					ctx, cancel := context.WithTimeout(t.Context(), d)
					t.Cleanup(cancel)
					return ctx
				}
				start := time.Now()
				proxy{shutdownDelay: test.delay, log: zap.NewNop()}.waitForShutdown(after(test.signal), after(test.fail))
				if got := time.Since(start); got != test.want {
					t.Errorf("the shutdown began after %s, want %s", got, test.want)
				}
			})
		})
	}
}

func stopProxy(t *testing.T, proxy *exec.Cmd) {
	t.Helper()
	if err := proxy.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitForExit(t, proxy)
}

// waitForExit waits until the proxy exits, and kills it after 30 s, Kubernetes' default termination
// grace period.
func waitForExit(t *testing.T, proxy *exec.Cmd) {
	t.Helper()
	defer time.AfterFunc(30*time.Second, func() { proxy.Process.Kill() }).Stop()
	if err := proxy.Wait(); err != nil {
		t.Errorf("the proxy exited with %v, want status 0", err)
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
