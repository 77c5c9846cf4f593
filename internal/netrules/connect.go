package netrules

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"imds-oidc-proxy/internal/sockets"
)

// tokenSize is as long as a key, so that another server cannot guess a token.
const tokenSize = 32

// connectToSelf listens at the proxy's port, connects to the metadata address, and requires that
// the connection arrives. It reports whether the port guard reset the listener's answer. There
// are three ways for the connection to show that it arrived:
//
//   - Without the guard it is accepted, and the listener's random token comes back.
//   - With the guard it is refused, and the kernel has an unfinished connection (SYN_RECV) from
//     this connection's port at the proxy's port.
//   - With the guard and SYN cookies the kernel itself answers. The connection is accepted, and is
//     reset as soon as the listener sends its token.
func connectToSelf(ctx context.Context, c Config) (guarded bool, err error) {
	listener, err := openProxyPort(ctx, c)
	if err != nil {
		return false, err
	}
	w := &witness{listener: listener, seen: map[[tokenSize]byte]accepted{}}
	served := make(chan struct{})
	go func() { defer close(served); w.serve() }()
	defer func() { listener.Close(); <-served }()

	token, from, err := dialForToken(ctx, c)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return true, arrivedRefused(c, from, err)
	case errors.Is(err, syscall.ECONNRESET) && w.accepted(from, c.Metadata):
		return true, nil
	case err != nil:
		return false, &missed{err}
	}
	original, ok := w.original(token)
	switch {
	case !ok:
		return false, &missed{errOtherServer}
	case original != c.Metadata:
		return false, &missed{fmt.Errorf("it arrived with the original destination %s", original)}
	}
	return false, nil
}

// arrivedRefused returns nil if a connection that was refused had arrived at the proxy's port.
func arrivedRefused(c Config, from uint16, refused error) error {
	arrived, err := sockets.Connected(c.ProxyPort, from)
	if err != nil {
		return &Error{Cause: fmt.Sprintf("cannot tell whether a connection arrived at 127.0.0.1:%d: %v", c.ProxyPort, err)}
	}
	if !arrived {
		return &missed{refused}
	}
	return nil
}

// missed means that a connection did not arrive at the proxy's port, for the reason err.
type missed struct{ err error }

func (m *missed) Error() string { return m.err.Error() }
func (m *missed) Unwrap() error { return m.err }

var errOtherServer = errors.New("another server answered")

// remedy returns the remedy if there is no route, or otherwise.
func (m *missed) remedy(c Config, otherwise string) string {
	if errors.Is(m.err, syscall.ENETUNREACH) {
		// The kernel needs a route before it applies the nat rules.
		return "the pod has no route to " + c.Metadata.Addr().String() + ": give it a default route"
	}
	return otherwise
}

// dialForToken connects from a port of its own, reads a token, and sends nothing. No other
// process can have a connection from that port.
func dialForToken(ctx context.Context, c Config) (token [tokenSize]byte, from uint16, err error) {
	conn, from, err := dialFromOwnPort(ctx, c)
	if err != nil {
		return token, from, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetReadDeadline(deadline); err != nil {
			return token, from, err
		}
	}
	_, err = io.ReadFull(conn, token[:])
	return token, from, err
}

// dialFromOwnPort connects to the metadata address. It returns the local port also if that fails.
func dialFromOwnPort(ctx context.Context, c Config) (conn net.Conn, from uint16, err error) {
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var bindErr error
		err := raw.Control(func(fd uintptr) { from, bindErr = bindAnyPort(int(fd)) })
		return errors.Join(err, bindErr)
	}}
	dialer.SetMultipathTCP(false) // its connections may have further ports
	conn, err = dialer.DialContext(ctx, "tcp4", c.Metadata.String())
	return conn, from, err
}

// bindAnyPort binds a socket to a port that the kernel chooses, and returns the port.
func bindAnyPort(fd int) (uint16, error) {
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{}); err != nil {
		return 0, fmt.Errorf("binding a port: %w", err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		return 0, fmt.Errorf("reading the bound port: %w", err)
	}
	if v4, ok := name.(*syscall.SockaddrInet4); ok {
		return uint16(v4.Port), nil
	}
	return 0, errors.New("the bound port is not one of IPv4")
}

// witness answers each connection with another token, and records the original destination of
// the connection by its token: applications may connect at the same time.
type witness struct {
	listener net.Listener

	mu   sync.Mutex
	seen map[[tokenSize]byte]accepted
}

// accepted is a connection that arrived at the proxy's port.
type accepted struct {
	from     uint16 // the port of the other side
	original netip.AddrPort
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
	w.seen[token] = accepted{conn.RemoteAddr().(*net.TCPAddr).AddrPort().Port(), to}
	w.mu.Unlock()
	_, _ = conn.Write(token[:]) // after an error, the dialing side reads no token
}

func (w *witness) original(token [tokenSize]byte) (netip.AddrPort, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a, ok := w.seen[token]
	return a.original, ok
}

// accepted reports whether a connection from the port, to the destination, was accepted.
func (w *witness) accepted(from uint16, to netip.AddrPort) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.seen {
		if a == (accepted{from, to}) {
			return true
		}
	}
	return false
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
