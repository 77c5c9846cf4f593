package imds_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/tokens"
)

const (
	tenantID     = "11111111-1111-1111-1111-111111111111"
	defaultID    = "22222222-2222-2222-2222-222222222222"
	otherID      = "55555555-5555-5555-5555-555555555555"
	mappedID     = "77777777-7777-7777-7777-777777777777"
	objectID     = "66666666-6666-6666-6666-666666666666"
	resourceID   = "/subscriptions/s/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id1"
	vault        = "https://vault.azure.net"
	tokenPath    = "/metadata/identity/oauth2/token"
	tokenVersion = "api-version=2018-02-01"

	// secret is the value of Config.AppServiceHeader.
	secret = "a1b2c3d4-0000-4000-8000-5e6f7a8b9c0d"
)

// epoch is the time of the tests. The fake's tokens expire an hour and half a second later,
// so that tests notice wrong rounding.
var epoch = time.Unix(1605152024, 0)

const tokenLife = time.Hour + 500*time.Millisecond

// tokenSource is a fake of package tokens: it returns a token with the client ID in it, and
// records the requests.
type tokenSource struct {
	// answer returns the result. Nil: the result is a token.
	answer func(context.Context, tokens.Request) (tokens.Result, error)

	// learned has the client IDs of selectors. Requests with others are refused and are not
	// recorded: they get no token.
	learned map[azure.Selector]azure.ClientID

	mu       sync.Mutex // guards requests
	requests []tokens.Request
}

func (s *tokenSource) Token(ctx context.Context, req tokens.Request) (tokens.Result, error) {
	var learned azure.ClientID
	if req.Selector != "" && s.answer == nil {
		if learned = s.learned[req.Selector]; learned == "" {
			return tokens.Result{}, &exchange.Error{Kind: exchange.UnknownIdentity, Detail: "not in any token", Cause: tokens.ErrUnknownSelector}
		}
		req.ClientID = learned
	}
	s.mu.Lock()
	s.requests = append(s.requests, req)
	s.mu.Unlock()
	if s.answer != nil {
		return s.answer(ctx, req)
	}
	return tokens.Result{
		Token: exchange.Token{
			AccessToken: "token-of-" + string(req.ClientID),
			NotBefore:   epoch,
			ExpiresOn:   epoch.Add(tokenLife),
		},
		Source:   tokens.SourceEntra,
		ClientID: learned,
	}, nil
}

// seen returns the requests since the last call.
func (s *tokenSource) seen() []tokens.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests := s.requests
	s.requests = nil
	return requests
}

// fixed returns an answer that is always the same.
func fixed(result tokens.Result) func(context.Context, tokens.Request) (tokens.Result, error) {
	return func(context.Context, tokens.Request) (tokens.Result, error) { return result, nil }
}

func failing(err error) *tokenSource {
	return &tokenSource{answer: func(context.Context, tokens.Request) (tokens.Result, error) {
		return tokens.Result{}, err
	}}
}

func config(source imds.TokenSource) imds.Config {
	return imds.Config{
		Tokens:          source,
		TenantID:        tenantID,
		DefaultClientID: defaultID,
		Identities:      identities(objectID, mappedID, resourceID, mappedID),
		Version:         "test",
		Fallback:        http.HandlerFunc(fallback),
		Now:             func() time.Time { return epoch },
	}
}

// identities returns a map from pairs of a selector and a client ID.
func identities(pairs ...string) map[azure.Selector]azure.ClientID {
	known := map[azure.Selector]azure.ClientID{}
	for i := 0; i < len(pairs); i += 2 {
		known[azure.Selector(strings.ToLower(pairs[i]))] = azure.ClientID(pairs[i+1])
	}
	return known
}

// fallback answers as the router of the proxy's own endpoints, which here has only /readyz.
func fallback(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path != "/readyz":
		imds.NotFound(w, r)
	case r.Method != http.MethodGet:
		imds.MethodNotAllowed(w, r)
	default:
		io.WriteString(w, "ok")
	}
}

func newHandler(t testing.TB, cfg imds.Config) *imds.Handler {
	t.Helper()
	h, err := imds.New(cfg)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return h
}

// get sends a request with the Metadata header to a handler. Further headers have the form
// "Name: value".
func get(h http.Handler, target string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	r.Host = "169.254.169.254"
	r.Header.Set("Metadata", "true")
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}
