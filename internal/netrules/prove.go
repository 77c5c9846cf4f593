package netrules

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"imds-oidc-proxy/internal/sockets"
)

// Proof is how the redirect was proven.
type Proof string

// The results of [Prove] and [Validate].
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
	// ProvenByProxy means that a connection to the metadata address arrived at the running
	// proxy. It says nothing about the port guard.
	ProvenByProxy Proof = "connection (to the running proxy)"
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

// Prove connects to the metadata address and requires that the connection arrives at the
// proxy's port, where it listens meanwhile. It returns an *[Error] of [NotRedirected] if the
// connection does not arrive, and one of [PortTaken] if a process of another user than the
// proxy's holds the port: the redirect would make this process the pod's metadata service.
// With guard, it returns one of [NoGuard] unless the port guard resets the answer of this
// process, which is not the proxy.
//
// Call Prove only after the rules have been read back: without them the connection would leave
// the host. If it leaves the host nevertheless, because another program's rules apply first,
// it discloses nothing: only the listener sends data, and the dialing side sends nothing
// beyond the TCP handshake.
func Prove(ctx context.Context, c Config, guard bool) (Proof, error) {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	inUse, err := usedByProxy(ctx, c)
	switch {
	case err != nil:
		return "", err
	case !c.Sealed && isProxy(c):
		return ProberExempt, nil
	case inUse:
		return PortInUse, nil
	}
	guarded, err := connectToSelf(ctx, c)
	m, didMiss := errors.AsType[*missed](err)
	switch {
	case didMiss:
		return "", notRedirected(c, m)
	case err != nil:
		return "", err
	case guard && !guarded && !isProxy(c):
		return "", notGuarded(c)
	}
	return ProvenByConnection, nil
}

// isProxy reports whether this process has the UID and the GID of the proxy.
func isProxy(c Config) bool { return os.Geteuid() == int(c.UID) && os.Getegid() == int(c.GID) }

func notGuarded(c Config) *Error {
	return &Error{
		Kind:   NoGuard,
		Cause:  fmt.Sprintf("the redirect works, but there is no port guard: a process of UID %d answers at 127.0.0.1:%d", os.Geteuid(), c.ProxyPort),
		Remedy: "only the native backend has a port guard (--backend=native); if it installed the redirect, another process changed the rules: let it run again",
	}
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

func notRedirected(c Config, m *missed) *Error {
	return &Error{
		Kind:  NotRedirected,
		Cause: fmt.Sprintf("the rules are in place, but a connection to %s was not redirected to 127.0.0.1:%d: %v", c.Metadata, c.ProxyPort, m),
		Remedy: m.remedy(c, "another rule applies first, most likely in the nftables table of a service mesh: exclude "+
			c.Metadata.Addr().String()+"/32 from the traffic that it redirects") + "; --verify=false skips this connection",
	}
}
