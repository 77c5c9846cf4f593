package pod

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"imds-oidc-proxy/test/kit/netns"
)

// DecoyToken is the access token in the decoy's answer to a token request. It stands for
// the node's identity, which no application of the pod may get.
const DecoyToken = "the-identity-of-the-node"

// Decoy is a server at the metadata address, in place of the node's real IMDS. It records
// its requests, except those to /readyz, by which a starting proxy finds out whether its
// own traffic is redirected.
type Decoy struct {
	server *http.Server
	hangs  atomic.Bool
	nmi    atomic.Pointer[http.Handler]

	mu       sync.Mutex
	requests []string
}

// StartDecoy starts a decoy at port 80 of the metadata address. The process must be in a
// network namespace of package netns, whose loopback device has this address.
func StartDecoy() (*Decoy, error) {
	listener, err := net.Listen("tcp", netns.MetadataAddress+":80")
	if err != nil {
		return nil, fmt.Errorf("the decoy IMDS: %w", err)
	}
	d := &Decoy{}
	d.server = &http.Server{Handler: d, ReadHeaderTimeout: time.Minute}
	go d.server.Serve(listener) // returns when Close is called
	return d, nil
}

// ServeHTTP answers as the real IMDS might, with an identity that is not the pod's.
func (d *Decoy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/readyz" {
		http.NotFound(w, r)
		return
	}
	isToken := strings.Contains(strings.ToLower(r.URL.Path), "identity")
	if nmi := d.nmi.Load(); nmi != nil && isToken {
		(*nmi).ServeHTTP(w, r)
		return
	}
	d.mu.Lock()
	d.requests = append(d.requests, r.Method+" "+r.URL.Path)
	d.mu.Unlock()
	if d.hangs.Load() {
		<-r.Context().Done()
		return
	}

	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if isToken {
		fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer"}`, DecoyToken)
		return
	}
	fmt.Fprint(w, `{"answered_by":"decoy"}`)
}

// InterceptTokens lets h answer all token requests, as aad-pod-identity's NMI does on a node: the decoy sees
// none of them. Nil ends it.
func (d *Decoy) InterceptTokens(h http.Handler) {
	if h == nil {
		d.nmi.Store(nil)
		return
	}
	d.nmi.Store(&h)
}

// Hang makes the decoy answer no request from now on, until its client leaves.
func (d *Decoy) Hang() { d.hangs.Store(true) }

// Requests returns the method and path of each recorded request.
func (d *Decoy) Requests() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.requests...)
}

// Close stops the decoy.
func (d *Decoy) Close() error { return d.server.Close() }
