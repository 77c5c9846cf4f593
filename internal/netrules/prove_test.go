package netrules

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/test/kit/local"
)

// listen opens a port on the loopback device, which is not redirected. For Prove, such a
// listener is like another metadata service.
func listen(t *testing.T) (net.Listener, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort()
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	port, err := local.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return uint16(port)
}

// TestProveDisclosesNothing has another server at the metadata address. Prove must not take it
// for its own listener, and must not send it a byte.
func TestProveDisclosesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		answer    []byte
		wantCause string
	}{
		"silent": {nil, "i/o timeout"},
		"HTTP":   {[]byte("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), "another server answered"},
		"short":  {[]byte("hello"), "unexpected EOF"},
		"zeros":  {make([]byte, tokenSize), "another server answered"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // with the silent server, Prove waits for its whole timeout
			server, metadata := listen(t)
			sent := make(chan []byte, 1)
			go func() {
				defer close(sent)
				conn, err := server.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				_, _ = conn.Write(tt.answer)
				if len(tt.answer) > 0 && len(tt.answer) < tokenSize {
					_ = conn.(*net.TCPConn).CloseWrite()
				}
				got, _ := io.ReadAll(conn)
				sent <- got
			}()
			_, err := Prove(t.Context(), Config{Metadata: metadata, ProxyPort: freePort(t), Sealed: true}, false)
			if kindOf(err) != NotRedirected || !strings.Contains(err.Error(), tt.wantCause) {
				t.Errorf("got %v, want NotRedirected, %s", err, tt.wantCause)
			}
			server.Close() // ends Accept if no connection was made
			if got, connected := <-sent; !connected || len(got) > 0 {
				t.Errorf("Prove sent %q, connected: %t; want a connection without data", got, connected)
			}
		})
	}
}

func TestProveWithoutConnection(t *testing.T) {
	_, inUse := listen(t)
	refusing := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	bound := local.BoundPort(t)
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	for name, tt := range map[string]struct {
		config   Config
		want     Proof
		wantKind Kind
	}{
		"port in use":                                  {Config{Metadata: refusing, ProxyPort: inUse.Port(), UID: uid, Sealed: true}, PortInUse, 0},
		"port in use, exempt":                          {Config{Metadata: refusing, ProxyPort: inUse.Port(), UID: uid, GID: gid}, ProberExempt, 0},
		"port of another user":                         {Config{Metadata: refusing, ProxyPort: inUse.Port(), UID: uid + 1, GID: gid}, "", PortTaken},
		"port of another user, sealed":                 {Config{Metadata: refusing, ProxyPort: inUse.Port(), UID: uid + 1, Sealed: true}, "", PortTaken},
		"port bound by a process that does not listen": {Config{Metadata: refusing, ProxyPort: bound, UID: uid, Sealed: true}, "", PortTaken},
		"no server":                                    {Config{Metadata: refusing, ProxyPort: freePort(t), Sealed: true}, "", NotRedirected},
		"exempt":                                       {Config{Metadata: refusing, ProxyPort: freePort(t), UID: uid, GID: gid}, ProberExempt, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // a port of this user is tried again until portTimeout
			got, err := Prove(context.Background(), tt.config, false)
			if got != tt.want || kindOf(err) != tt.wantKind {
				t.Errorf("got %q, %v, want %q, kind %d", got, err, tt.want, tt.wantKind)
			}
		})
	}
}

// TestCheckPort checks that CheckPort reads the owner of the port and makes no connection.
func TestCheckPort(t *testing.T) {
	listener, inUse := listen(t)
	uid := uint32(os.Geteuid())
	for name, tt := range map[string]struct {
		config Config
		want   Kind // 0: no error
	}{
		"free":         {Config{ProxyPort: freePort(t), UID: uid + 1}, 0},
		"the proxy's":  {Config{ProxyPort: inUse.Port(), UID: uid}, 0},
		"another user": {Config{ProxyPort: inUse.Port(), UID: uid + 1}, PortTaken},
		"sealed":       {Config{ProxyPort: inUse.Port(), UID: uid + 1, Sealed: true}, PortTaken},
	} {
		if err := CheckPort(t.Context(), tt.config); kindOf(err) != tt.want || (err == nil) != (tt.want == 0) {
			t.Errorf("%s: got %v, want kind %d", name, err, tt.want)
		}
	}
	if err := listener.(*net.TCPListener).SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if conn, err := listener.Accept(); err == nil {
		t.Errorf("CheckPort connected from %v", conn.RemoteAddr())
	}
}

// TestPortTakenNamesBothUsers checks that the error names the user that listens and the user of
// the proxy, in one line for the log and the termination message.
func TestPortTakenNamesBothUsers(t *testing.T) {
	_, inUse := listen(t)
	uid := uint32(os.Geteuid())
	_, err := Prove(t.Context(), Config{Metadata: inUse, ProxyPort: inUse.Port(), UID: uid + 1, Sealed: true}, false)
	want := fmt.Sprintf("127.0.0.1:%d, the proxy's port, is taken: a process of UID %d listens there, and the proxy's user is UID %d", inUse.Port(), uid, uid+1)
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
}

// TestAfterOtherRun checks that a port that another run of proxy-init holds is tried again, and
// not longer than portTimeout.
func TestAfterOtherRun(t *testing.T) {
	for name, tt := range map[string]struct {
		heldFor, cancelAfter, wantWait time.Duration
	}{
		"free":           {0, time.Hour, 0},
		"another run":    {50 * time.Millisecond, time.Hour, 3 * portRetry},
		"another server": {time.Hour, time.Hour, portTimeout},
		"canceled":       {time.Hour, portRetry + portRetry/2, portRetry + portRetry/2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tt.cancelAfter)
				defer cancel()
				start := time.Now()
				afterOtherRun(ctx, func() bool { return time.Since(start) < tt.heldFor })
				if got := time.Since(start); got != tt.wantWait {
					t.Errorf("waited %v, want %v", got, tt.wantWait)
				}
			})
		})
	}
}
