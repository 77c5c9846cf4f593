package exchange

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// discoveryLife is how long the tenant's OpenID configuration is taken from
// memory. It says where the token endpoint is, and changes about never.
const discoveryLife = 24 * time.Hour

// doubtfulLife is how long it is where exchanges fail and none was answered yet. It
// is not zero: an Entra that throttles, or is down, would be asked twice for each try.
const doubtfulLife = 30 * time.Second

// discovery answers MSAL's requests for the tenant's OpenID configuration from
// memory once it has it. All clients of an Exchanger have the same tenant, so they
// share it, and one that fetches it does so for all that wait. One that has led to
// Entra and has become old is used while it is fetched anew: nobody waits for that,
// and nobody fails with it.
//
// MSAL has such a memory too, one in each of its clients; here a client lives
// for one exchange (see Exchanger), so it has to be kept outside of them.
type discovery struct {
	next  http.RoundTripper
	group singleflight.Group

	mu      sync.Mutex
	known   *document // nil: none
	fetched time.Time
	proven  bool               // known led to Entra
	doubted bool               // an exchange failed before any proved known
	abandon context.CancelFunc // ends the fetch under way; nil: there was none
}

// document is an answer as it was received.
type document struct {
	status int
	header http.Header
	body   []byte
}

func (d *discovery) RoundTrip(req *http.Request) (*http.Response, error) {
	// The OpenID configuration is all that MSAL gets with instance discovery off.
	if req.Method != http.MethodGet {
		return d.next.RoundTrip(req)
	}
	doc, old := d.remembered()
	if old {
		d.begin(req)
	}
	if doc == nil {
		var err error
		if doc, err = d.fetchShared(req); err != nil {
			return nil, err
		}
	}
	if note, ok := req.Context().Value(usedDocument{}).(**document); ok {
		*note = doc
	}
	return doc.response(req), nil
}

// usedDocument is the key of a context for a **document: where to note which one an
// exchange was given.
type usedDocument struct{}

// noteDocument returns a context for one exchange, and where the document that it is
// given will stand; nil until then.
func noteDocument(ctx context.Context) (context.Context, **document) {
	used := new(*document)
	return context.WithValue(ctx, usedDocument{}, used), used
}

// CloseIdleConnections also ends a fetch that nobody may wait for any more.
func (d *discovery) CloseIdleConnections() {
	d.mu.Lock()
	if d.abandon != nil {
		d.abandon()
	}
	d.mu.Unlock()
	closeIdle(d.next)
}

// remembered returns the document to use, nil for none. old says that it is to be
// fetched anew meanwhile; that is said again after doubtfulLife if nothing came of it.
func (d *discovery) remembered() (doc *document, old bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	life := discoveryLife
	if d.doubted {
		life = doubtfulLife
	}
	switch {
	case d.known == nil:
		return nil, false
	case time.Since(d.fetched) < life:
		return d.known, false
	case !d.proven:
		return nil, false
	}
	d.fetched = time.Now().Add(doubtfulLife - discoveryLife)
	return d.known, true
}

// fetchShared runs one fetch for all who wait. It outlives the caller that began
// it, so that one who leaves does not fail the others.
func (d *discovery) fetchShared(req *http.Request) (*document, error) {
	fetched := d.begin(req)
	select {
	case result := <-fetched:
		if result.Err != nil {
			return nil, result.Err
		}
		return result.Val.(*document), nil
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
}

// begin has one fetch under way.
func (d *discovery) begin(req *http.Request) <-chan singleflight.Result {
	return d.group.DoChan(req.URL.String(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), discoverTimeout)
		defer cancel()
		d.mu.Lock()
		d.abandon = cancel
		d.mu.Unlock()
		return d.fetch(req.Clone(ctx))
	})
}

func (d *discovery) fetch(req *http.Request) (*document, error) {
	resp, err := d.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	doc := &document{status: resp.StatusCode, header: resp.Header, body: body}
	if doc.good() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.known, d.fetched, d.proven, d.doubted = doc, time.Now(), false, false
	}
	return doc, nil
}

// judge is told whether an exchange that used a document was answered by Entra, as its
// token or its error code shows. Until one was, an exchange that failed may be the
// document's fault, which may be wrong in ways that MSAL alone can tell: it is soon
// fetched anew. What became of a document says nothing about the one that took its
// place meanwhile.
func (d *discovery) judge(used *document, answered bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if used == nil || used != d.known {
		return
	}
	d.proven = d.proven || answered
	d.doubted = !d.proven
}

// OpenIDConfiguration is the part of a tenant's discovery document that an exchange needs
// (OpenID Connect Discovery 1.0, section 3).
type OpenIDConfiguration struct {
	Issuer                string `json:"issuer"`
	AuthorizationEndpoint string `json:"authorization_endpoint"`
	TokenEndpoint         string `json:"token_endpoint"`
}

// configuration is empty where the body is not a JSON object.
func (d *document) configuration() (c OpenIDConfiguration) {
	if json.Unmarshal(d.body, &c) != nil {
		return OpenIDConfiguration{}
	}
	return c
}

// good reports whether the document is worth remembering: a captive portal, too,
// answers 200.
func (d *document) good() bool {
	c := d.configuration()
	return d.status == http.StatusOK && c.Issuer != "" && c.AuthorizationEndpoint != "" && c.TokenEndpoint != ""
}

// misfit is MSAL's error for a discovery document that was read and does not fit the
// authority.
type misfit struct {
	OpenIDConfiguration
	err error
}

func (m *misfit) Error() string {
	return "the discovery document does not fit the authority: " + m.err.Error()
}

func (m *misfit) Unwrap() error { return m.err }

func (d *document) response(req *http.Request) *http.Response {
	return &http.Response{
		StatusCode:    d.status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        d.header.Clone(),
		Body:          io.NopCloser(bytes.NewReader(d.body)),
		ContentLength: int64(len(d.body)),
		Request:       req,
	}
}
