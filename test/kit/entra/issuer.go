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
	// issuerTimeout bounds the fetch of an issuer's document and keys.
	issuerTimeout = 10 * time.Second

	// keysLifetime is how long an issuer's keys are kept. A token under a key
	// that is not among them has them fetched anew at once.
	keysLifetime = time.Hour
)

// errIssuer is any fault of an issuer's document or keys.
var errIssuer = errors.New("issuer's keys cannot be had")

// issuerKeys fetches the keys of issuers, and keeps them.
type issuerKeys struct {
	server *Server

	// turn is held while cache is used or filled. It is a channel since waiting
	// for a channel, unlike for a mutex, lets the clock of a synctest bubble run.
	turn  chan struct{}
	cache map[string]cachedKeys
}

type cachedKeys struct {
	set     jose.JSONWebKeySet
	fetched time.Time
}

func newIssuerKeys(s *Server) *issuerKeys {
	return &issuerKeys{server: s, turn: make(chan struct{}, 1), cache: make(map[string]cachedKeys)}
}

// client is the client to fetch url with, nil for none. The server's own issuer
// is asked in the same way, but without a connection: there may be no listener,
// and Connections is to count clients'.
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

// key is the issuer's key of that ID, nil where it has none.
func (k *issuerKeys) key(ctx context.Context, issuer, id string) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, issuerTimeout)
	defer cancel()
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
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

// fetch reads the discovery document, whose issuer has to be the one asked for
// (OpenID Connect Discovery 1.0, section 4.3), and the keys that it names.
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
		return fmt.Errorf("%w: %q is no https URL", errIssuer, url)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errIssuer, err)
	}
	client := k.client(url)
	if client == nil {
		return fmt.Errorf("%w: there is no client for %q", errIssuer, url)
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
