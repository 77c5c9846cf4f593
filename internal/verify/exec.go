package verify

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"strings"
	"sync"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// maxOutput bounds the output of a program. That of proxy check is a few kilobytes.
const maxOutput = 1 << 20

// RemoteExecutor runs programs through the API server.
type RemoteExecutor struct{ Config *rest.Config }

// Exec implements [Executor]. It uses WebSocket, and SPDY with servers that do not know it.
func (r RemoteExecutor) Exec(ctx context.Context, namespace, pod, container string, command ...string) (output string, code int, err error) {
	address, err := r.address(namespace, pod, url.Values{"container": {container}, "command": command, "stdout": {"true"}, "stderr": {"true"}})
	if err != nil {
		return "", 0, err
	}
	websocket, err := remotecommand.NewWebSocketExecutor(r.Config, "GET", address.String())
	if err != nil {
		return "", 0, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(r.Config, "POST", address)
	if err != nil {
		return "", 0, err
	}
	executor, err := remotecommand.NewFallbackExecutor(websocket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return "", 0, err
	}
	out := new(limited)
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: out, Stderr: out})
	if exit, ended := errors.AsType[exec.CodeExitError](err); ended {
		return out.String(), exit.Code, nil
	}
	return out.String(), 0, err
}

// address returns the URL of the exec subresource of a pod.
func (r RemoteExecutor) address(namespace, pod string, query url.Values) (*url.URL, error) {
	base, _, err := rest.DefaultServerUrlFor(r.Config)
	if err != nil {
		return nil, err
	}
	address := *base
	address.Path = strings.TrimSuffix(base.Path, "/") + "/api/v1/namespaces/" + namespace + "/pods/" + pod + "/exec"
	address.RawQuery = query.Encode()
	return &address, nil
}

// limited is a buffer that drops what is too much. Standard output and standard error are copied into it at the
// same time. It does not embed the buffer: io.Copy would use the buffer's ReadFrom, without lock and limit.
type limited struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *limited) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if room := maxOutput - l.text.Len(); room > 0 {
		l.text.Write(text[:min(len(text), room)])
	}
	return len(text), nil
}

func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
