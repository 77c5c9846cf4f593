// Package nodetaint removes a taint from one node, with the service account of the pod that it
// runs in.
//
//	client, err := nodetaint.New(nodetaint.Config{Node: "node-1", Taint: "example.test/not-ready", …})
//	removed, err := client.Remove(ctx)
//
// It makes two requests to the API server, and does not link Kubernetes' libraries, which would
// multiply the size of the program.
//
// # Security considerations
//
// The service account needs the permission to patch nodes. Kubernetes cannot limit it to one node
// or one field. The package changes only the taints of one node, and only if they are still those
// that it has read.
package nodetaint

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// ServiceAccountDir is where the kubelet mounts the service account's token and the API
	// server's certificate authority.
	ServiceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

	// timeout is the timeout of each request.
	timeout = 10 * time.Second

	// maxAnswer is the maximum size of a node in bytes. It has about 20 KiB, and at most the 1.5
	// MiB that etcd accepts.
	maxAnswer = 2 << 20
)

// Config configures a [Client]. All fields are required.
type Config struct {
	// Node is the name of the node, and Taint the key of the taint.
	Node, Taint string

	// Server is the API server's host and port.
	Server string

	// Dir has the files token and ca.crt. The kubelet renews the token.
	Dir string
}

// Client removes the taint.
type Client struct {
	config Config
	url    string
	http   *http.Client
}

// New reads the certificate authority and returns a Client.
func New(c Config) (*Client, error) {
	authority, err := os.ReadFile(filepath.Join(c.Dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("the pod has no service account token: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s has no certificate", filepath.Join(c.Dir, "ca.crt"))
	}
	return &Client{
		config: c,
		url:    "https://" + c.Server + "/api/v1/nodes/" + url.PathEscape(c.Node),
		http:   &http.Client{Timeout: timeout, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}},
	}, nil
}

// taint has the key of a taint, and the whole of it.
type taint struct {
	key string
	raw json.RawMessage
}

func (t *taint) UnmarshalJSON(text []byte) error {
	t.raw = bytes.Clone(text)
	var fields struct{ Key string }
	err := json.Unmarshal(text, &fields)
	t.key = fields.Key
	return err
}

func (t taint) MarshalJSON() ([]byte, error) { return t.raw, nil }

// Remove removes all taints with the key. It reports whether there was one.
func (c *Client) Remove(ctx context.Context) (removed bool, err error) {
	var node struct{ Spec struct{ Taints []taint } }
	if err := c.do(ctx, http.MethodGet, nil, &node); err != nil {
		return false, err
	}
	kept := []taint{}
	for _, t := range node.Spec.Taints {
		if t.key != c.config.Taint {
			kept = append(kept, t)
		}
	}
	if len(kept) == len(node.Spec.Taints) {
		return false, nil
	}
	type operation struct {
		Op    string  `json:"op"`
		Path  string  `json:"path"`
		Value []taint `json:"value"`
	}
	// The test fails if another program has changed the taints since they were read.
	patch, err := json.Marshal([]operation{{"test", "/spec/taints", node.Spec.Taints}, {"replace", "/spec/taints", kept}})
	if err != nil {
		return false, err
	}
	if err := c.do(ctx, http.MethodPatch, patch, nil); err != nil {
		return false, err
	}
	return true, nil
}

// do sends a request about the node. Its errors contain no part of the token.
func (c *Client) do(ctx context.Context, method string, patch []byte, answer any) error {
	token, err := os.ReadFile(filepath.Join(c.config.Dir, "token"))
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, c.url, bytes.NewReader(patch))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	request.Header.Set("Content-Type", "application/json-patch+json")
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	switch {
	case err != nil:
		return err
	case len(body) > maxAnswer:
		return errors.New("the API server's answer is too large")
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("%s node %s: the API server answers %s%s", method, c.config.Node, response.Status, hint(response.StatusCode))
	case answer == nil:
		return nil
	}
	return json.Unmarshal(body, answer)
}

// hint returns what to do about a status.
func hint(status int) string {
	switch status {
	case http.StatusForbidden:
		return ": the service account needs the permissions get and patch for nodes"
	case http.StatusNotFound:
		return ": there is no node of this name"
	}
	return ""
}
