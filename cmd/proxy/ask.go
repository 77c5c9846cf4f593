package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/diagnose"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/sockets"
)

const (
	// askTimeout bounds one question to this machine or to the node.
	askTimeout = 2 * time.Second
)

// metadata is how `proxy check` finds out who answers metadata requests.
func (c *checkConfig) metadata() diagnose.Metadata {
	m := diagnose.Metadata{
		Port:       c.proxy.port,
		Exempt:     exempt(c.proxy.port),
		NoRedirect: c.noRedirect,
		ProxyUIDs:  []uint32{azure.ProxyID, uint32(os.Getuid())},
		PortOwner:  func() (uint32, error) { return sockets.Owner(uint16(c.proxy.port)) },
		AskPort: func(ctx context.Context) (diagnose.Answer, error) {
			return askPlainly(ctx, fmt.Sprintf("http://127.0.0.1:%d/readyz", c.proxy.port))
		},
		AskRedirect: func(ctx context.Context) (diagnose.Answer, error) {
			return askByLoopback(ctx, string(c.proxy.imdsAddress))
		},
	}
	if c.askIMDS {
		m.AskReal = func(ctx context.Context) (diagnose.Answer, error) {
			return askPlainly(ctx, string(c.proxy.imdsAddress)+"/metadata/versions")
		}
	}
	return m
}

// exempt reports whether this process runs as the user whom the redirect exempts: the
// proxy's own, which is 1501 or owns the socket that listens at its port.
func exempt(port int) bool {
	if os.Getuid() == azure.ProxyID && os.Getgid() == azure.ProxyID {
		return true
	}
	owner, err := sockets.Owner(uint16(port))
	return err == nil && owner == uint32(os.Getuid())
}

func askPlainly(ctx context.Context, location string) (diagnose.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return whoAnswers(ctx, &net.Dialer{}, location)
}

// whoAnswers asks a server of this pod or node who it is. No proxy of the environment
// stands in between, and no redirect leads elsewhere. Of the body only our own
// proxy's reason is kept.
func whoAnswers(ctx context.Context, dialer *net.Dialer, location string) (diagnose.Answer, error) {
	client := &http.Client{
		Transport:     &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return diagnose.Answer{}, err
	}
	req.Header.Set("Metadata", "true")
	resp, err := client.Do(req)
	if err != nil {
		return diagnose.Answer{}, err
	}
	defer resp.Body.Close()
	answer := diagnose.Answer{Server: resp.Header.Get("Server"), Status: resp.StatusCode}
	if strings.HasPrefix(answer.Server, imds.ServerName) {
		answer.Ours = true
		reason, _ := io.ReadAll(io.LimitReader(resp.Body, probeReasonLimit))
		answer.Reason = strings.TrimSpace(string(reason))
	}
	return answer, nil
}
