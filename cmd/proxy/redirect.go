package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/diagnose"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/sockets"
)

const (
	// askTimeout bounds a request to this pod or this node.
	askTimeout = 2 * time.Second

	// loopbackTimeout bounds a request through the loopback device. With a redirect it is
	// answered within a millisecond; without one it is never answered.
	loopbackTimeout = time.Second
)

// metadata returns how `proxy check` finds out which server answers metadata requests.
func (c *checkConfig) metadata() diagnose.Metadata {
	m := diagnose.Metadata{
		Port:       c.proxy.port,
		Exempt:     exempt(c.proxy.port),
		NoRedirect: c.noRedirect,
		ProxyUIDs:  []uint32{azure.ProxyID, uint32(os.Getuid())},
		PortOwners: func() ([]uint32, error) { return sockets.Owners(c.proxy.port) },
		AskPort: func(ctx context.Context) (diagnose.Responder, error) {
			return askPlainly(ctx, fmt.Sprintf("http://127.0.0.1:%d/readyz", c.proxy.port))
		},
		AskRedirect: func(ctx context.Context) (diagnose.Responder, error) {
			return askByLoopback(ctx, string(c.proxy.imdsAddress))
		},
	}
	m.AskProof = func(ctx context.Context) (diagnose.Responder, error) {
		return askPlainly(ctx, "http://"+azure.RedirectProof+"/readyz")
	}
	m.RequireBlocked = c.proxy.requireIMDSBlocked
	if c.askIMDS || m.RequireBlocked {
		m.AskReal = func(ctx context.Context) (diagnose.Responder, error) {
			return askPlainly(ctx, string(c.proxy.imdsAddress)+"/metadata/versions")
		}
	}
	return m
}

// exempt reports whether the redirect exempts this process: it runs as the proxy's user,
// which is 1501 or the owner of the socket that listens at the proxy's port.
func exempt(port uint16) bool {
	if os.Getuid() == azure.ProxyID && os.Getgid() == azure.ProxyID {
		return true
	}
	owners, err := sockets.Owners(port)
	return err == nil && slices.Contains(owners, uint32(os.Getuid()))
}

func askPlainly(ctx context.Context, location string) (diagnose.Responder, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return request(ctx, &net.Dialer{}, location)
}

// request returns which server answers at a URL. It ignores HTTP_PROXY and does not follow
// HTTP redirects. It reads the body only if the proxy answers: the body then is the reason.
func request(ctx context.Context, dialer *net.Dialer, location string) (diagnose.Responder, error) {
	client := &http.Client{
		Transport:     &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: maxAnswerHeader},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return diagnose.Responder{}, err
	}
	req.Header.Set("Metadata", "true")
	resp, err := client.Do(req)
	if err != nil {
		return diagnose.Responder{}, err
	}
	defer resp.Body.Close()
	responder := diagnose.Responder{Header: resp.Header.Get("Server"), Status: resp.StatusCode}
	if strings.HasPrefix(responder.Header, imds.ServerName) {
		responder.Proxy = true
		reason, _ := io.ReadAll(io.LimitReader(resp.Body, probeReasonLimit))
		responder.Reason = strings.TrimSpace(string(reason))
	}
	return responder, nil
}

// checkExemption returns an error if the redirect does not exempt this process: requests
// that it forwards to IMDS would be redirected back to it, in a loop.
func checkExemption(ctx context.Context, address string) error {
	if !redirectedHere(ctx, address) {
		return nil
	}
	return configErrorf("the redirect does not exempt UID %d and GID %d, which this proxy runs as, so requests forwarded to IMDS would loop: "+
		"set runAsUser and runAsGroup to the PROXY_UID and PROXY_GID of proxy-init (default %d), or turn forwarding off with --imds-passthrough=off",
		os.Getuid(), os.Getgid(), azure.ProxyID)
}

var errNoRedirect = errors.New("there is no redirect in this pod: the CNI plugin did not run on this node, or not for this pod")

// proofTimeout bounds the connection of [proveRedirect]. Over loopback it takes less than a
// millisecond, but while a node starts many pods, this process may not run for seconds.
const proofTimeout = 10 * time.Second

// proveRedirect returns an error unless the rules of the redirect are in this pod: a connection
// to the address, which is [azure.RedirectProof], must arrive at the port, where this process
// listens. Without the rules it is refused at once, or arrives at another process of the pod.
func proveRedirect(ctx context.Context, address string, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	// A port of its own: no other process can have a connection from it.
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4zero}}
	dialer.SetMultipathTCP(false) // its connections may have further ports
	conn, err := dialer.DialContext(ctx, "tcp4", address)
	arrived := false
	if err == nil {
		defer conn.Close()
		arrived, err = sockets.Connected(port, conn.LocalAddr().(*net.TCPAddr).AddrPort().Port())
	}
	switch {
	case err == nil && arrived:
		return nil
	case err == nil:
		err = errors.New("another process answered")
	}
	return fmt.Errorf("%w: a connection to %s did not arrive at 127.0.0.1:%d: %w; check that the plugin is installed there, and create the pod again", errNoRedirect, address, port, err)
}

// redirectedHere reports whether a connection of this process to the address of the real
// IMDS arrives at this program. It returns false if that is unknown, as on kernels before 5.7.
func redirectedHere(ctx context.Context, address string) bool {
	responder, err := askByLoopback(ctx, address)
	return err == nil && responder.Proxy
}

// askByLoopback requests /readyz at the address. No packet can leave the machine: the socket
// is bound to the loopback device, which a redirected connection reaches, and which drops
// the packets of any other.
func askByLoopback(ctx context.Context, address string) (diagnose.Responder, error) {
	ctx, cancel := context.WithTimeout(ctx, loopbackTimeout)
	defer cancel()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, Control: bindToLoopback}
	return request(ctx, dialer, address+"/readyz")
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
