package netrules

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"imds-oidc-proxy/internal/sockets"
)

// Proof is how the redirect was proven.
type Proof string

// The results of [Prove].
const (
	// ProvenByConnection means that a connection to the metadata address arrived at the
	// proxy's port.
	ProvenByConnection Proof = "connection"
	// PortInUse means that the proxy's user already listens at the proxy's port, so no
	// connection was made, and the rules were only read back.
	PortInUse Proof = "rules (the proxy's port is in use)"
	// ProberExempt means that this process has the UID and GID that the rules exempt, so no
	// connection was made: it would have reached the real metadata service.
	ProberExempt Proof = "rules (this process is exempt from the redirect)"
)

// proofTimeout is the timeout of the proof, which is one connection. A redirected connection
// uses the loopback device only, so a slower one was not redirected.
const proofTimeout = 3 * time.Second

// Another run of proxy-init listens at the proxy's port during its proof, for some
// milliseconds, as this process's user. A port that this user holds is therefore read again
// after portRetry, until portTimeout.
const (
	portRetry   = 20 * time.Millisecond
	portTimeout = time.Second
)

// tokenSize is as long as a key, so that another server cannot guess a token.
const tokenSize = 32

// Prove connects to the metadata address and requires that the connection arrives at the
// proxy's port, where it listens meanwhile. It returns an *[Error] of [NotRedirected] if the
// connection does not arrive, and one of [PortTaken] if a process of another user than the
// proxy's holds the port: the redirect would make this process the pod's metadata service.
//
// Call Prove only after the rules have been read back: without them the connection would leave
// the host. If it leaves the host nevertheless, because another program's rules apply first,
// it discloses nothing: only the listener sends data, and the dialing side sends nothing
// beyond the TCP handshake.
func Prove(ctx context.Context, c Config) (Proof, error) {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	inUse, err := usedByProxy(ctx, c)
	switch {
	case err != nil:
		return "", err
	case !c.Sealed && os.Geteuid() == int(c.UID) && os.Getegid() == int(c.GID):
		return ProberExempt, nil
	case inUse:
		return PortInUse, nil
	}
	listener, err := openProxyPort(ctx, c)
	if err != nil {
		return "", err
	}
	w := &witness{listener: listener, seen: map[[tokenSize]byte]netip.AddrPort{}}
	served := make(chan struct{})
	go func() { defer close(served); w.serve() }()
	defer func() { listener.Close(); <-served }()

	token, err := dialForToken(ctx, c.Metadata)
	if err != nil {
		failure := notRedirected(c, err.Error())
		if errors.Is(err, syscall.ENETUNREACH) {
			// The kernel needs a route before it applies the nat rules.
			failure.Remedy = "the pod has no route to " + c.Metadata.Addr().String() + ": give it a default route, or use --verify=false"
		}
		return "", failure
	}
	original, ok := w.original(token)
	switch {
	case !ok:
		return "", notRedirected(c, "another server answered")
	case original != c.Metadata:
		return "", notRedirected(c, "it arrived with the original destination "+original.String())
	}
	return ProvenByConnection, nil
}

// CheckPort returns an *[Error] of [PortTaken] where a process of another user than the
// proxy's listens at the proxy's port: a container that runs before the proxy, or while the
// proxy is down, can bind the port and answer metadata requests in its place. It returns nil
// where the proxy's user listens there, or no process does. It does not change the rules and
// makes no connection.
func CheckPort(ctx context.Context, c Config) error {
	_, err := usedByProxy(ctx, c)
	return err
}

// usedByProxy reports whether the proxy's user listens at the proxy's port. Its error is
// that of [CheckPort].
func usedByProxy(ctx context.Context, c Config) (inUse bool, err error) {
	afterOtherRun(ctx, func() (again bool) {
		var owners []uint32
		if owners, err = sockets.Owners(c.ProxyPort); err != nil {
			err = &Error{Cause: fmt.Sprintf("cannot tell who listens at 127.0.0.1:%d: %v", c.ProxyPort, err)}
			return false
		}
		inUse = len(owners) > 0
		for _, owner := range owners {
			if owner != c.UID {
				err = portTaken(c, fmt.Sprintf("a process of UID %d listens there", owner))
				return owner == uint32(os.Geteuid())
			}
		}
		return false
	})
	return inUse && err == nil, err
}

// afterOtherRun calls attempt, and calls it again while it returns true, because another run
// of proxy-init may hold the proxy's port: see portRetry. It ends with ctx or after
// portTimeout.
func afterOtherRun(ctx context.Context, attempt func() (again bool)) {
	end := time.Now().Add(portTimeout)
	for attempt() && time.Now().Before(end) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(portRetry):
		}
	}
}

func portTaken(c Config, what string) *Error {
	return &Error{
		Kind:   PortTaken,
		Cause:  fmt.Sprintf("127.0.0.1:%d, the proxy's port, is taken: %s, and the proxy's user is UID %d", c.ProxyPort, what, c.UID),
		Remedy: "remove the container that listens there, or give the proxy another --proxy-port (PROXY_PORT); if it is the proxy, set --proxy-uid (PROXY_UID) to its user",
	}
}

// openProxyPort listens at the proxy's port, after usedByProxy found that no process does.
func openProxyPort(ctx context.Context, c Config) (listener net.Listener, err error) {
	afterOtherRun(ctx, func() (again bool) {
		listener, err = new(net.ListenConfig).Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(c.ProxyPort))))
		return errors.Is(err, syscall.EADDRINUSE)
	})
	switch {
	case err == nil:
		return listener, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, portTaken(c, "a process that does not listen, or that started to listen just now, holds it")
	case errors.Is(err, syscall.EACCES):
		return nil, &Error{Cause: fmt.Sprintf("proving the redirect: %v", err), Remedy: privilegedPortRemedy}
	}
	return nil, &Error{Cause: fmt.Sprintf("proving the redirect: %v", err), Remedy: "choose another --proxy-port, or use --verify=false"}
}

// privilegedPortRemedy is for ports that only root may bind. The proxy does not run as root, so
// it could not bind the port either.
const privilegedPortRemedy = "ports below 1024 need the capability NET_BIND_SERVICE, which the proxy does not have either: " +
	"set --proxy-port (PROXY_PORT) of both programs to 1024 or more"

func notRedirected(c Config, what string) *Error {
	return &Error{
		Kind:  NotRedirected,
		Cause: fmt.Sprintf("the rules are in place, but a connection to %s was not redirected to 127.0.0.1:%d: %s", c.Metadata, c.ProxyPort, what),
		Remedy: "another rule applies first, most likely in the nftables table of a service mesh: exclude " +
			c.Metadata.Addr().String() + "/32 from the traffic that it redirects",
	}
}

// dialForToken connects, reads a token, and sends nothing.
func dialForToken(ctx context.Context, to netip.AddrPort) (token [tokenSize]byte, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp4", to.String())
	if err != nil {
		return token, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return token, err
		}
	}
	_, err = io.ReadFull(conn, token[:])
	return token, err
}

// witness answers each connection with another token, and records the original destination of
// the connection by its token: applications may connect at the same time.
type witness struct {
	listener net.Listener

	mu   sync.Mutex
	seen map[[tokenSize]byte]netip.AddrPort
}

func (w *witness) serve() {
	for {
		conn, err := w.listener.Accept()
		if err != nil {
			return
		}
		w.answer(conn.(*net.TCPConn))
	}
}

// answer writes a token. This does not block, because a token fits into any send buffer.
func (w *witness) answer(conn *net.TCPConn) {
	defer conn.Close()
	to, err := originalDestination(conn)
	if err != nil {
		return
	}
	var token [tokenSize]byte
	rand.Read(token[:])
	w.mu.Lock()
	w.seen[token] = to
	w.mu.Unlock()
	_, _ = conn.Write(token[:]) // after an error, the dialing side reads no token
}

func (w *witness) original(token [tokenSize]byte) (netip.AddrPort, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	to, ok := w.seen[token]
	return to, ok
}

// soOriginalDst is SO_ORIGINAL_DST of <linux/netfilter_ipv4.h>, the option for the destination
// of a connection before NAT.
const soOriginalDst = 80

func originalDestination(conn *net.TCPConn) (to netip.AddrPort, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return to, err
	}
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		// The kernel writes a sockaddr_in of 16 bytes: family, port, address. IPv6Mreq is
		// the smallest type that package syscall can read and that is large enough.
		var mreq *syscall.IPv6Mreq
		mreq, sockErr = syscall.GetsockoptIPv6Mreq(int(fd), syscall.IPPROTO_IP, soOriginalDst)
		if sockErr == nil {
			sa := mreq.Multiaddr
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), uint16(sa[2])<<8|uint16(sa[3]))
		}
	})
	return to, errors.Join(err, sockErr)
}
