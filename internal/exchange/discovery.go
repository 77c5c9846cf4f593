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
// memory. It says where the token endpoint is, and hardly ever changes.
const discoveryLife = 24 * time.Hour

// doubtfulLife takes the place of discoveryLife while exchanges fail and Entra has
// answered none yet. It is not zero: each try at an Entra that throttles, or is down, would
// cost two requests.
const doubtfulLife = 30 * time.Second

// discovery answers MSAL's requests for the tenant's OpenID configuration from memory once
// it was fetched. All exchanges are for the same tenant, so they share the document, and
// one fetch serves all that wait for it. A document that has led to Entra is still used when
// it is old, while it is fetched again in the background: no exchange waits for that, or
// fails because of it.
//
// Each MSAL client remembers the configuration too, but here a client lives for one exchange
// (see Exchanger).
type discovery struct {
	next  http.RoundTripper
	group singleflight.Group

	mu      sync.Mutex
	known   *document // nil: none
	fetched time.Time
	proven  bool               // known led to Entra
	doubted bool               // an exchange failed before any proved known
	abandon context.CancelFunc // ends the latest fetch; nil: there was none
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

// usedDocument is a context key. Its value is a **document, in which RoundTrip notes the
// document that it gave an exchange.
type usedDocument struct{}

// noteDocument returns a context for one exchange, and a pointer that is set to the document
// that the exchange gets.
func noteDocument(ctx context.Context) (context.Context, **document) {
	used := new(*document)
	return context.WithValue(ctx, usedDocument{}, used), used
}

// CloseIdleConnections also ends a fetch, which may have no caller left.
func (d *discovery) CloseIdleConnections() {
	d.mu.Lock()
	if d.abandon != nil {
		d.abandon()
	}
	d.mu.Unlock()
	closeIdle(d.next)
}

// remembered returns the document to use, nil for none. old says that it has to be fetched
// again in the background; if that fails, remembered says so again after doubtfulLife.
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

// fetchShared runs one fetch for all callers. The fetch outlives the caller that began it:
// a caller that leaves does not fail the others.
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

// begin starts a fetch, or joins the one that runs.
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

// judge notes whether Entra answered an exchange that used a document, as its token or its
// error code shows. Until Entra has answered one, a failure may be the document's fault: it
// may be wrong in ways that only MSAL detects, so it is soon fetched again. The result says
// nothing about a document that has taken its place meanwhile.
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

// bounded returns a copy for errors, which are remembered: others wrote its texts.
func (c OpenIDConfiguration) bounded() *OpenIDConfiguration {
	return &OpenIDConfiguration{bounded(c.Issuer), bounded(c.AuthorizationEndpoint), bounded(c.TokenEndpoint)}
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
