package exchange

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// discoveryLife is how long the tenant's OpenID configuration is cached. It contains the
// address of the token endpoint, and rarely changes.
const discoveryLife = 24 * time.Hour

// doubtfulLife replaces discoveryLife while exchanges fail and Entra has answered none yet. It
// is not zero: otherwise each try would cost two requests while Entra throttles or is down.
const doubtfulLife = 30 * time.Second

// discovery caches the tenant's OpenID configuration, and answers MSAL's requests for it. All
// exchanges are for the same tenant, so they share the document, and exchanges that wait for
// it share one fetch. A document with which an exchange reached Entra is still used when it is
// old, while it is fetched again in the background: no exchange waits for that fetch, or fails
// because of it.
//
// An MSAL client caches the configuration too, but only for one exchange (see Exchanger).
type discovery struct {
	next  http.RoundTripper
	group singleflight.Group

	mu      sync.Mutex // guards the fields below
	known   *document  // nil: none
	fetched time.Time
	proven  bool               // Entra answered an exchange that used known
	doubted bool               // an exchange with known failed, and none was answered
	abandon context.CancelFunc // cancels the latest fetch; nil: there was none
}

// document is an HTTP response as it was received.
type document struct {
	status int
	header http.Header
	body   []byte
}

func (d *discovery) RoundTrip(req *http.Request) (*http.Response, error) {
	// Without instance discovery, MSAL's only GET requests are for the OpenID configuration.
	if req.Method != http.MethodGet {
		return d.next.RoundTrip(req)
	}
	doc, old := d.cached()
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

// usedDocument is a context key. Its value is a **document, in which RoundTrip stores the
// document that it returned to an exchange.
type usedDocument struct{}

// noteDocument returns a context for one exchange, and a pointer to the document that the
// exchange used.
func noteDocument(ctx context.Context) (context.Context, **document) {
	used := new(*document)
	return context.WithValue(ctx, usedDocument{}, used), used
}

// CloseIdleConnections also cancels a fetch, which may have no caller left.
func (d *discovery) CloseIdleConnections() {
	d.mu.Lock()
	if d.abandon != nil {
		d.abandon()
	}
	d.mu.Unlock()
	closeIdle(d.next)
}

// cached returns the document to use, nil for none. old says that it must be fetched again in
// the background. If that fails, cached says so again after doubtfulLife.
func (d *discovery) cached() (doc *document, old bool) {
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

// fetchShared runs one fetch for all callers. The fetch continues when the caller that began it
// leaves, so that it does not fail for the others.
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

// begin starts a fetch, or joins the running one.
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
	if doc.valid() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.known, d.fetched, d.proven, d.doubted = doc, time.Now(), false, false
	}
	return doc, nil
}

// judge notes whether Entra answered an exchange that used a document: it did if the result is
// a token or has an error code of Entra. Until then, a failure may be caused by the document,
// which may be wrong in ways that only MSAL detects, so it is soon fetched again. A result for
// a document that was replaced meanwhile is ignored.
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

// bounded returns a copy for errors, which stay in memory. A server chose its texts.
func (c OpenIDConfiguration) bounded() *OpenIDConfiguration {
	return &OpenIDConfiguration{bounded(c.Issuer), bounded(c.AuthorizationEndpoint), bounded(c.TokenEndpoint)}
}

// configuration parses the body. It returns the zero value if the body is not a JSON object.
func (d *document) configuration() (c OpenIDConfiguration) {
	if json.Unmarshal(d.body, &c) != nil {
		return OpenIDConfiguration{}
	}
	return c
}

// valid reports whether the document may be cached: a captive portal answers 200, too.
func (d *document) valid() bool {
	c := d.configuration()
	return d.status == http.StatusOK && c.Issuer != "" && c.AuthorizationEndpoint != "" && c.TokenEndpoint != ""
}

// checkEndpoint returns an error if no request may be sent to the token endpoint in d. The guard
// refuses the request in any case; with this check, Discover returns the error too.
func (d *document) checkEndpoint(g *guard) error {
	if d == nil {
		return nil // MSAL got no document from discovery
	}
	endpoint, err := url.Parse(d.configuration().TokenEndpoint)
	if err != nil {
		return err
	}
	return g.check(endpoint)
}

// misfit is the error for a valid discovery document that does not match the authority host.
type misfit struct {
	OpenIDConfiguration
	err error
}

func (m *misfit) Error() string {
	return "the discovery document does not match the authority host: " + m.err.Error()
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
