package imds

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// errUnusableToken is a fault of the token source. No client gets a token that is empty,
// has expired or has no not_before time, because some clients crash on it.
var errUnusableToken = errors.New("the token source returned a token that is empty or not valid now")

// token answers a request for an access token.
func (h *Handler) token(w http.ResponseWriter, r *http.Request, o *outcome) error {
	return h.answerToken(w, r, o, checkHeaders)
}

// answerToken answers a request for an access token whose headers pass the check.
func (h *Handler) answerToken(w http.ResponseWriter, r *http.Request, o *outcome, check func(*http.Request) error) error {
	if h.debug {
		h.log.Debug("received token request", zap.String("method", bounded(r.Method)), zap.String("path", o.path))
	}
	wanted, err := h.readTokenRequest(r, o, check)
	if err != nil {
		return err
	}
	result, err := h.tokens.Token(r.Context(), wanted)
	if err != nil && r.Context().Err() != nil {
		result, err = h.tokenForHalfClosed(r.Context(), wanted, err)
	}
	if errors.Is(err, tokens.ErrUnknownSelector) {
		return refused(errIdentityNotFound, err.Error())
	}
	if err != nil {
		return err
	}
	if wanted.Selector != "" {
		o.clientID = string(result.ClientID)
	}
	o.answered = h.now()
	if !usable(result.Token, o.answered) {
		return errUnusableToken
	}
	o.body = appendToken(o.body, o, result.Token)
	if err := writeJSON(w, http.StatusOK, o.body); err != nil {
		return err
	}
	o.source = result.Source
	return nil
}

// halfClosedWait bounds the second wait for a client that seems to have closed the
// connection. An exchange takes a few hundred milliseconds. If the client is really gone,
// its connection stays open this long.
const halfClosedWait = 2 * time.Second

// tokenForHalfClosed waits for the token a second time, after the first wait ended with the
// error left because net/http has read the end of the connection. The client may have
// closed only its half, as nc -N does, and still read: only a write would show it.
func (h *Handler) tokenForHalfClosed(ctx context.Context, wanted tokens.Request, left error) (tokens.Result, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), halfClosedWait)
	defer cancel()
	result, err := h.tokens.Token(ctx, wanted)
	if err != nil && ctx.Err() != nil {
		return tokens.Result{}, left
	}
	return result, err
}

// readTokenRequest validates a request in the same order as IMDS. It fills in the outcome
// also if it returns an error, for the log.
func (h *Handler) readTokenRequest(r *http.Request, o *outcome, check func(*http.Request) error) (tokens.Request, error) {
	if err := requireGet(r); err != nil {
		return tokens.Request{}, err
	}
	if err := check(r); err != nil {
		return tokens.Request{}, err
	}
	if r.ContentLength != 0 { // the body could name an identity, as in a form
		return tokens.Request{}, errRequestBody
	}
	req, err := parseTokenRequest(r.URL.RawQuery, h.strictVersion)
	o.resource, o.selector = req.resource, req.selector
	if err != nil {
		return tokens.Request{}, err
	}
	if req.unversioned {
		h.logUnversioned()
	}
	clientID, named, err := h.identities.identity(req.selector)
	if err != nil {
		return tokens.Request{}, err
	}
	o.clientID = string(clientID)
	return tokens.Request{ClientID: clientID, Selector: named, Resource: azure.Resource(req.resource), Fresh: req.fresh}, nil
}

// logUnversioned logs once, not for each request, that this package is more lenient than
// IMDS.
func (h *Handler) logUnversioned() {
	h.loggedUnversioned.Do(func() {
		h.log.Info("accepting token requests without api-version; IMDS refuses them, and so does --strict-api-version")
	})
}

// usable reports whether every client can read the token's times: expires_in must be
// positive, and not_before must have only digits.
func usable(t exchange.Token, now time.Time) bool {
	return t.AccessToken != "" && t.ExpiresOn.Sub(now) >= time.Second && t.NotBefore.Unix() > 0
}

// info answers with the identity's tenant.
func (h *Handler) info(w http.ResponseWriter, r *http.Request, _ *outcome) error {
	return h.constant(w, r, h.infoBody)
}

// versions answers with the API versions that IMDS documents.
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

// appendToken appends the body of a successful answer in the form that clients rely on:
// one line, no white space, every value a string, in this order. Some clients search for
// substrings (mssql-jdbc, SqlClient), some split at a name (azcopy), some read only one
// line (Java). encoding/json is slower and would escape the & in a resource.
func appendToken(b []byte, o *outcome, token exchange.Token) []byte {
	expiresIn := int64(token.ExpiresOn.Sub(o.answered) / time.Second)

	b = append(b, `{"access_token":`...)
	b = appendJSONString(b, token.AccessToken)
	b = append(b, `,"client_id":`...)
	b = appendJSONString(b, o.clientID)
	b = append(b, `,"expires_in":"`...)
	b = strconv.AppendInt(b, expiresIn, 10)
	b = append(b, `","expires_on":"`...)
	b = appendExpiry(b, token.ExpiresOn, o.dates)
	b = append(b, `","ext_expires_in":"`...)
	b = strconv.AppendInt(b, expiresIn, 10)
	b = append(b, `","not_before":"`...)
	b = strconv.AppendInt(b, token.NotBefore.Unix(), 10)
	b = append(b, `","resource":`...)
	b = appendJSONString(b, o.resource)
	return append(b, `,"token_type":"Bearer"}`...)
}

// appendError appends the body of an error response: always these two members, both
// strings.
func appendError(b []byte, a answer) []byte {
	b = append(b, `{"error":`...)
	b = appendJSONString(b, a.code)
	b = append(b, `,"error_description":`...)
	b = appendJSONString(b, a.description)
	return append(b, '}')
}

// appendJSONString appends s as a JSON string (RFC 8259, section 7). It escapes only the
// characters that must be escaped: msal-node and Python compare the resource with the
// requested one, some of them before decoding.
func appendJSONString(b []byte, s string) []byte {
	b = append(b, '"')
	for {
		n := plainPrefix(s)
		b = append(b, s[:n]...)
		if s = s[n:]; s == "" {
			return append(b, '"')
		}
		b, s = appendFirst(b, s)
	}
}

// plainPrefix returns the number of bytes at the start of s that are ASCII and need no
// escape in a JSON string. An access token is two kilobytes of such bytes, so plainPrefix
// checks eight bytes at a time: suspect has a high bit for each byte that is not ASCII,
// below space, a quote or a backslash. It may also have one for a byte that follows such
// a byte, which does no harm.
func plainPrefix(s string) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	n := 0
	for ; n <= len(s)-8; n += 8 {
		p := s[n : n+8]
		v := uint64(p[0]) | uint64(p[1])<<8 | uint64(p[2])<<16 | uint64(p[3])<<24 |
			uint64(p[4])<<32 | uint64(p[5])<<40 | uint64(p[6])<<48 | uint64(p[7])<<56
		suspect := v | (v - ones*' ') | ((v ^ ones*'"') - ones) | ((v ^ ones*'\\') - ones)
		if suspect&highs != 0 {
			break
		}
	}
	for n < len(s) && ' ' <= s[n] && s[n] < utf8.RuneSelf && s[n] != '"' && s[n] != '\\' {
		n++
	}
	return n
}

// appendFirst appends the first character of s, with an escape if it needs one, and
// returns the rest of s.
func appendFirst(b []byte, s string) ([]byte, string) {
	if s[0] < utf8.RuneSelf {
		return appendEscaped(b, s[0]), s[1:]
	}
	r, size := utf8.DecodeRuneInString(s)
	return utf8.AppendRune(b, r), s[size:] // r is U+FFFD if s is not UTF-8
}

func appendEscaped(b []byte, c byte) []byte {
	const hex = "0123456789abcdef"
	if c == '"' || c == '\\' {
		return append(b, '\\', c)
	}
	return append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
}
