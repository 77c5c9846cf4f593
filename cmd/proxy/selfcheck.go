package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"imds-oidc-proxy/internal/diagnose"
)

// selfCheckTimeout bounds the look at the redirect. Where there is none, the
// connection is never answered; where there is one, it takes a millisecond.
const selfCheckTimeout = time.Second

// checkExemption refuses to forward as a user whom the redirect does not exempt:
// each forwarded request would come back to this proxy.
func checkExemption(ctx context.Context, address string) error {
	if !redirectedHere(ctx, address) {
		return nil
	}
	return configErrorf("the redirect does not exempt UID %d and GID %d, as which this proxy runs: what it forwards to IMDS would come back to it; "+
		"set runAsUser and runAsGroup to the PROXY_UID and PROXY_GID of proxy-init (1501 and 1501), or forward nothing (--imds-passthrough=off)",
		os.Getuid(), os.Getgid())
}

// redirectedHere reports whether a connection of this process to the address of
// the real IMDS arrives at a proxy such as this one. False also means that it
// cannot tell, as on kernels before 5.7.
func redirectedHere(ctx context.Context, address string) bool {
	answer, err := askByLoopback(ctx, address)
	return err == nil && answer.Ours
}

// askByLoopback asks the address for /readyz without a packet that could leave the
// machine: the socket is bound to the loopback device, where a redirected
// connection arrives and any other is lost.
func askByLoopback(ctx context.Context, address string) (diagnose.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, selfCheckTimeout)
	defer cancel()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, Control: bindToLoopback}
	return whoAnswers(ctx, dialer, address+"/readyz")
}

func bindToLoopback(_, _ string, conn syscall.RawConn) error {
	var bindErr error
	err := conn.Control(func(fd uintptr) {
		bindErr = syscall.SetsockoptString(int(fd), syscall.SOL_SOCKET, syscall.SO_BINDTODEVICE, "lo")
	})
	if err != nil {
		return err
	}
	if bindErr != nil {
		return fmt.Errorf("binding to the loopback device: %w", bindErr)
	}
	return nil
}
