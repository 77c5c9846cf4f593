package entra

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	// issuerTimeout bounds fetching an issuer's document and keys.
	issuerTimeout = 10 * time.Second

	// keysLifetime is how long an issuer's keys are cached. A token with an unknown key
	// ID makes the server fetch the keys again at once.
	keysLifetime = time.Hour
)

// errIssuer is the error of a document or keys of an issuer that cannot be used.
var errIssuer = errors.New("cannot get the issuer's keys")

// issuerKeys fetches and caches the keys of issuers.
type issuerKeys struct {
	server *Server

	// lock guards cache: a goroutine sends a value to lock it, and receives to unlock it. It
	// is a channel and not a mutex, because the clock of a synctest bubble advances while
	// goroutines wait for a channel, but not while they wait for a mutex.
	lock  chan struct{}
	cache map[string]cachedKeys
}

type cachedKeys struct {
	set     jose.JSONWebKeySet
	fetched time.Time
}

func newIssuerKeys(s *Server) *issuerKeys {
	return &issuerKeys{server: s, lock: make(chan struct{}, 1), cache: make(map[string]cachedKeys)}
}

// client returns the client for url, or nil if url must not be fetched. Requests to the
// server's own issuer use no connection: there may be no listener, and Connections must
// count only the connections of clients.
func (k *issuerKeys) client(url string) *http.Client {
	if k.server.isOwn(url) {
		return &http.Client{Transport: k.server.Transport(), CheckRedirect: noRedirect}
	}
	return k.server.cfg.IssuerClient
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// verify checks the token's signature and returns an AADSTS code, or 0.
func (k *issuerKeys) verify(ctx context.Context, issuer string, token *jwt.JSONWebToken) int {
	key, err := k.key(ctx, issuer, token.Headers[0].KeyID)
	switch {
	case err != nil:
		k.server.cfg.Log.Info("cannot verify an assertion", "issuer", issuer, "error", err)
		return codeIssuerUnreachable
	case key == nil:
		return codeUnknownKey
	case token.Claims(key) != nil:
		return codeBadSignature
	}
	return 0
}

// key returns the issuer's key with the given ID, or nil if it has none.
func (k *issuerKeys) key(ctx context.Context, issuer, id string) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, issuerTimeout)
	defer cancel()
	select {
	case k.lock <- struct{}{}:
		defer func() { <-k.lock }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}

	cached, ok := k.cache[issuer]
	if ok && k.server.now().Before(cached.fetched.Add(keysLifetime)) {
		if found := cached.set.Key(id); len(found) > 0 {
			return found[0].Key, nil
		}
	}
	set, err := k.fetch(ctx, issuer)
	if err != nil {
		return nil, err
	}
	k.cache[issuer] = cachedKeys{set: set, fetched: k.server.now()}
	if found := set.Key(id); len(found) > 0 {
		return found[0].Key, nil
	}
	return nil, nil
}

// fetch fetches the discovery document, whose issuer must be the requested one (OpenID
// Connect Discovery 1.0, section 4.3), and the keys at the document's jwks_uri.
func (k *issuerKeys) fetch(ctx context.Context, issuer string) (jose.JSONWebKeySet, error) {
	var set jose.JSONWebKeySet
	var document struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := k.get(ctx, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", &document); err != nil {
		return set, err
	}
	if document.Issuer != issuer {
		return set, fmt.Errorf("%w: the document is for %q", errIssuer, document.Issuer)
	}
	return set, k.get(ctx, document.JWKSURI, &set)
}

func (k *issuerKeys) get(ctx context.Context, url string, into any) error {
	if !strings.HasPrefix(url, "https://") {
		return fmt.Errorf("%w: %q is not an https URL", errIssuer, url)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errIssuer, err)
	}
	client := k.client(url)
	if client == nil {
		return fmt.Errorf("%w: %q must not be fetched", errIssuer, url)
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("%w: %w", errIssuer, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: %s answered %s", errIssuer, url, response.Status)
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxBody)).Decode(into); err != nil {
		return fmt.Errorf("%w: %s: %w", errIssuer, url, err)
	}
	return nil
}
