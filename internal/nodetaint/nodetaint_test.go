package nodetaint_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"

	"imds-oidc-proxy/internal/nodetaint"
)

// apiServer is an API server with one node.
type apiServer struct {
	mu    sync.Mutex
	node  string
	token string // that it accepts
	// between, if set, is called between the first request and the second.
	between func(s *apiServer)
	// status, if not zero, is the answer to every request with the method failing.
	failing string
	status  int
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "Bearer "+s.token:
		w.WriteHeader(http.StatusUnauthorized)
	case r.Method == s.failing:
		w.WriteHeader(s.status)
	case r.URL.Path != "/api/v1/nodes/node-1":
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodGet:
		fmt.Fprint(w, s.node)
		if s.between != nil {
			s.between(s)
		}
	case r.Method == http.MethodPatch && r.Header.Get("Content-Type") == "application/json-patch+json":
		s.patch(w, r)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

func (s *apiServer) patch(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	patch, err := jsonpatch.DecodePatch(body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	patched, err := patch.Apply([]byte(s.node))
	if err != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
		return
	}
	s.node = string(patched)
}

// client returns a client of the server for the taint example.test/not-ready.
func client(t *testing.T, s *apiServer, node string) (*nodetaint.Client, string) {
	t.Helper()
	server := httptest.NewTLSServer(s)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	for name, text := range map[string]string{"ca.crt": string(authority), "token": "secret\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.token = "secret"
	c, err := nodetaint.New(nodetaint.Config{Node: node, Taint: "example.test/not-ready", Server: server.Listener.Addr().String(), Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return c, dir
}

const (
	otherTaint = `{"effect":"NoExecute","key":"example.test/other","timeAdded":"2026-11-28T00:00:00Z"}`
	ourTaint   = `{"effect":"NoSchedule","key":"example.test/not-ready","value":"true"}`
)

// taints returns the taints of the server's node, or "none".
func (s *apiServer) taints(t *testing.T) string {
	t.Helper()
	var node struct {
		Spec struct{ Taints json.RawMessage }
	}
	if err := json.Unmarshal([]byte(s.node), &node); err != nil {
		t.Fatal(err)
	}
	if len(node.Spec.Taints) == 0 {
		return "none"
	}
	return string(node.Spec.Taints)
}

func node(taints string) string { return `{"kind":"Node","spec":{"podCIDR":"x"` + taints + `}}` }

func TestRemove(t *testing.T) {
	for taints, want := range map[string]struct {
		left    string
		removed bool
	}{
		"":                               {"none", false},
		`,"taints":[]`:                   {"[]", false},
		`,"taints":[` + otherTaint + `]`: {"[" + otherTaint + "]", false},
		`,"taints":[` + ourTaint + `]`:   {"[]", true},
		`,"taints":[` + otherTaint + "," + ourTaint + "," + strings.Replace(ourTaint, "NoSchedule", "NoExecute", 1) + `]`: {"[" + otherTaint + "]", true},
	} {
		s := &apiServer{node: node(taints)}
		c, _ := client(t, s, "node-1")
		removed, err := c.Remove(t.Context())
		if err != nil || removed != want.removed || s.taints(t) != want.left {
			t.Errorf("%s: got %t, %v, left %s, want %t, %s", taints, removed, err, s.taints(t), want.removed, want.left)
		}
		if removed, err := c.Remove(t.Context()); removed || err != nil {
			t.Errorf("%s: a second time: got %t, %v", taints, removed, err)
		}
	}
}

// TestRace: a taint that another program adds between the two requests stays.
func TestRace(t *testing.T) {
	s := &apiServer{node: node(`,"taints":[` + ourTaint + `]`)}
	s.between = func(s *apiServer) { s.node, s.between = node(`,"taints":[`+ourTaint+","+otherTaint+`]`), nil }
	c, _ := client(t, s, "node-1")
	if removed, err := c.Remove(t.Context()); err == nil || !strings.Contains(err.Error(), "422") {
		t.Errorf("got %t, %v, want status 422", removed, err)
	}
	if removed, err := c.Remove(t.Context()); !removed || err != nil || s.taints(t) != "["+otherTaint+"]" {
		t.Errorf("again: got %t, %v, left %s", removed, err, s.taints(t))
	}
}

// TestTokenRenewed: the token is read for each request.
func TestTokenRenewed(t *testing.T) {
	s := &apiServer{node: node("")}
	c, dir := client(t, s, "node-1")
	s.token = "renewed"
	if _, err := c.Remove(t.Context()); err == nil || !strings.Contains(err.Error(), "401") || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v, want status 401 without the token", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "token"), []byte("renewed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		server *apiServer
		node   string
		want   string
	}{
		"forbidden":    {&apiServer{failing: http.MethodGet, status: 403}, "node-1", "needs the permissions get and patch for nodes"},
		"no patch":     {&apiServer{node: node(`,"taints":[` + ourTaint + `]`), failing: http.MethodPatch, status: 403}, "node-1", "PATCH node node-1"},
		"unknown node": {&apiServer{}, "node-2", "there is no node of this name"},
		"a path":       {&apiServer{}, "../node-1", "there is no node of this name"},
		"no JSON":      {&apiServer{node: "<html>"}, "node-1", "invalid character"},
		"too large":    {&apiServer{node: node(`,"x":"` + strings.Repeat("x", 2<<20) + `"`)}, "node-1", "too large"},
	} {
		c, _ := client(t, tt.server, tt.node)
		if _, err := c.Remove(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line with %q", name, err, tt.want)
		}
	}
}

// TestNewFails: without a service account's files there is no client.
func TestNewFails(t *testing.T) {
	dir := t.TempDir()
	if _, err := nodetaint.New(nodetaint.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "no service account token") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := nodetaint.New(nodetaint.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "has no certificate") {
		t.Errorf("got %v", err)
	}
}
