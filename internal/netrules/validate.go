package netrules

import (
	"context"
	"errors"
	"fmt"
	"net"

	"imds-oidc-proxy/internal/sockets"
)

// Validate proves by one connection that another program, such as a CNI plugin, has installed the
// redirect and the port guard in the namespace of this process. It changes nothing and needs no
// privilege. It must not run as the proxy's user, whom the guard lets answer and the redirect
// exempts.
//
// It returns an *[Error] of [NoRedirect] if the connection does not arrive at the proxy's port,
// of [NoGuard] if it arrives and the guard does not reset the answer, and of [PortTaken] if a
// process of another user holds the port. If the proxy itself listens at the port, the guard
// cannot be observed, and only the redirect is proven.
//
// Without a redirect the connection leaves the pod. It discloses nothing: see [Prove].
func Validate(ctx context.Context, c Config) (Proof, error) {
	if isProxy(c) {
		return "", &Error{Cause: fmt.Sprintf("this process has the user and group of the proxy (%d:%d), to which the rules do not apply", c.UID, c.GID),
			Remedy: "run the validation as another user"}
	}
	var proof Proof
	var err error
	for range validateAttempts {
		if proof, err = validateOnce(ctx, c); !dialTimedOut(err) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return "", noRedirect(c, err)
	}
	return proof, nil
}

// validateAttempts is how often [Validate] connects if the connection is neither accepted nor
// refused in time. Over loopback that takes a fraction of a millisecond. But while a node starts
// many pods, a container with a small CPU request may not run for seconds, and finds its deadline
// passed. Without a redirect, a firewall that drops packets has the same effect.
const validateAttempts = 5

func dialTimedOut(err error) bool {
	failed, ok := errors.AsType[*net.OpError](err)
	return ok && failed.Op == "dial" && failed.Timeout()
}

// validateOnce makes one connection.
func validateOnce(ctx context.Context, c Config) (Proof, error) {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	inUse, err := usedByProxy(ctx, c)
	if err != nil {
		return "", err
	}
	if inUse {
		return ProvenByProxy, connectToProxy(ctx, c)
	}
	guarded, err := connectToSelf(ctx, c)
	if err == nil && !guarded {
		err = notGuarded(c)
	}
	return ProvenByConnection, err
}

// noRedirect replaces the error of a connection that did not arrive.
func noRedirect(c Config, err error) error {
	m, didMiss := errors.AsType[*missed](err)
	if !didMiss {
		return err
	}
	return &Error{
		Kind:   NoRedirect,
		Cause:  fmt.Sprintf("there is no redirect in this pod: a connection to %s did not arrive at 127.0.0.1:%d: %v", c.Metadata, c.ProxyPort, m),
		Remedy: m.remedy(c, "the CNI plugin did not run on this node, or not for this pod: check that it is installed there, and create the pod again"),
	}
}

// connectToProxy connects to the metadata address, and requires that the connection arrives at
// the proxy's port, where the proxy listens.
func connectToProxy(ctx context.Context, c Config) error {
	conn, from, err := dialFromOwnPort(ctx, c)
	if err != nil {
		return &missed{err}
	}
	defer conn.Close()
	arrived, err := sockets.Connected(c.ProxyPort, from)
	switch {
	case err != nil:
		return &Error{Cause: fmt.Sprintf("cannot tell whether a connection arrived at 127.0.0.1:%d: %v", c.ProxyPort, err)}
	case !arrived:
		return &missed{errOtherServer}
	}
	return nil
}
