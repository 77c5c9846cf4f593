package imds

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// errUnusableToken is a fault of the token source: no client gets a token that
// is empty, over or without a beginning, since some crash on it.
var errUnusableToken = errors.New("the token source returned a token that is empty or not valid now")

// token answers a request for an access token.
func (h *Handler) token(w http.ResponseWriter, r *http.Request, o *outcome) error {
	if h.debug {
		h.log.Debug("received token request", zap.String("method", bounded(r.Method)), zap.String("path", o.path))
	}
	wanted, err := h.readTokenRequest(r, o)
	if err != nil {
		return err
	}
	result, err := h.tokens.Token(r.Context(), wanted)
	if err != nil && r.Context().Err() != nil {
		result, err = h.tokenForHalfClosed(r.Context(), wanted, err)
	}
	if err != nil {
		return err
	}
	o.answered = h.now()
	if !usable(result.Token, o.answered) {
		return errUnusableToken
	}
	o.body = appendToken(o.body, o.clientID, o.resource, result.Token, o.answered)
	if err := writeJSON(w, http.StatusOK, o.body); err != nil {
		return err
	}
	o.source = result.Source
	return nil
}

// halfClosedWait is how long a client that seems to have left is waited for. An exchange
// takes some hundred milliseconds; one that is really gone keeps its place this long.
const halfClosedWait = 2 * time.Second

// tokenForHalfClosed asks again for a client whose wait has ended with left, since
// net/http has read the end of its connection. It may have closed its half alone, as
// nc -N does, and read on: only a write would tell.
func (h *Handler) tokenForHalfClosed(ctx context.Context, wanted tokens.Request, left error) (tokens.Result, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), halfClosedWait)
	defer cancel()
	result, err := h.tokens.Token(ctx, wanted)
	if err != nil && ctx.Err() != nil {
		return tokens.Result{}, left
	}
	return result, err
}

// readTokenRequest validates a request in the order in which IMDS does. It notes
// what is known by then in the outcome, for the log.
func (h *Handler) readTokenRequest(r *http.Request, o *outcome) (tokens.Request, error) {
	if err := requireGet(r); err != nil {
		return tokens.Request{}, err
	}
	if err := checkHeaders(r); err != nil {
		return tokens.Request{}, err
	}
	req, err := parseTokenRequest(r.URL.RawQuery, h.strictVersion)
	o.resource = req.resource
	if err != nil {
		return tokens.Request{}, err
	}
	if req.unversioned {
		h.sayUnversioned()
	}
	clientID, err := h.identities.clientID(req.selector)
	if err != nil {
		return tokens.Request{}, err
	}
	o.clientID = string(clientID)
	return tokens.Request{ClientID: clientID, Resource: azure.Resource(req.resource), Fresh: req.fresh}, nil
}

// sayUnversioned says once, not for each request, that we are more lenient than IMDS.
func (h *Handler) sayUnversioned() {
	h.saidUnversioned.Do(func() {
		h.log.Info("accepting token requests without api-version; IMDS refuses them, and so does --strict-api-version")
	})
}

// usable reports whether every client can read the token's times: positive
// seconds to expiry, and digits for its beginning.
func usable(t exchange.Token, now time.Time) bool {
	return t.AccessToken != "" && t.ExpiresOn.Sub(now) >= time.Second && t.NotBefore.Unix() > 0
}

// info answers which tenant the identity is of.
func (h *Handler) info(w http.ResponseWriter, r *http.Request, _ *outcome) error {
	return h.constant(w, r, h.infoBody)
}

// versions answers which versions of the API are known.
func (h *Handler) versions(w http.ResponseWriter, r *http.Request, _ *outcome) error {
	return h.constant(w, r, h.versionsBody)
}

func (h *Handler) constant(w http.ResponseWriter, r *http.Request, body []byte) error {
	if err := requireGet(r); err != nil {
		return err
	}
	if err := checkHeaders(r); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, body)
}

func appendInfo(b []byte, tenantID string) []byte {
	b = append(b, `{"tenantId":`...)
	return append(appendJSONString(b, tenantID), '}')
}

func appendVersions(b []byte, versions []string) []byte {
	b = append(b, `{"apiVersions":["`...)
	b = append(b, strings.Join(versions, `","`)...)
	return append(b, `"]}`...)
}
