package exchange

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/AzureAD/microsoft-authentication-library-for-go/apps/confidential"
	msal "github.com/AzureAD/microsoft-authentication-library-for-go/apps/errors"

	"imds-oidc-proxy/internal/azure"
)

const (
	// noRegion makes MSAL ignore MSAL_FORCE_REGION, which may make it ask the node's real
	// metadata service for a region.
	noRegion = "DisableMsalForceRegion"

	// maxLife bounds the lifetime of a token. The longest of Entra is 28 hours; a response
	// with more than a month is broken.
	maxLife = 31 * 24 * time.Hour

	// maxRetryAfter bounds the Retry-After of Entra, or of a proxy in front of it. Entra
	// sends seconds to a few minutes; a wrong value must not stop a pod for a day.
	maxRetryAfter = 10 * time.Minute
)

// unusable says why a token from Entra must not be returned. It is empty for a usable token.
func unusable(result confidential.AuthResult, began time.Time) string {
	if life := result.ExpiresOn.Sub(began); life < MinLife || life > maxLife {
		return "entra's token has no usable expiry"
	}
	// RFC 6750, section 2.1. Applications put the token into a header without escaping.
	if strings.ContainsFunc(result.AccessToken, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"'\,;<>`, r)
	}) {
		return "entra's token contains invalid characters"
	}
	return ""
}

// scope returns the v2 scope for a v1 resource. It keeps a slash at the end of the resource:
// Entra copies what precedes /.default into the token's audience.
func scope(resource azure.Resource) string {
	const all = "/.default"
	if strings.HasSuffix(string(resource), all) {
		return string(resource)
	}
	return string(resource) + all
}

// classify converts an error of MSAL into an Error. MSAL's error texts quote bodies, and its
// errors contain the request with the assertion: only a status and validated identifiers are
// taken from them.
func classify(ctx context.Context, err error, p peer, via string) *Error {
	// A response is evaluated even if ctx ended while its body was read.
	if call, ok := errors.AsType[msal.CallErr](err); ok && call.Resp != nil {
		return refusal(call, p)
	}
	if fault, ok := errors.AsType[*routeFault](err); ok {
		return &Error{Kind: Unavailable, Detail: fault.detail, Fault: &Fault{Kind: fault.kind, Text: fault.detail}, Retry: fault.retry, hint: fault.hint}
	}
	late := ctx.Err() != nil || timedOut(err)
	fault := faultOf(err, late, p.name, via)
	e := &Error{Kind: Unavailable, Detail: fault.Text, Fault: &fault, Retry: RetrySoon}
	if late {
		e.Kind = DeadlineExceeded
	}
	if fault.Kind == FaultMisfit {
		e.hint = hintAuthority
	}
	return e
}

// refusalBody has the fields of an error response that are used.
type refusalBody struct {
	Error         string `json:"error"`
	Description   string `json:"error_description"`
	ErrorCodes    []int  `json:"error_codes"`
	TraceID       string `json:"trace_id"`
	CorrelationID string `json:"correlation_id"`
}

// leadingCode matches the beginning of Entra's error descriptions. A number further on may be
// part of a quoted text.
var leadingCode = regexp.MustCompile(`^AADSTS([0-9]{5,8})\b`)

// codes returns the AADSTS numbers of an error response. Private clouds, and proxies in front
// of Entra, omit error_codes.
func (b refusalBody) codes() []int {
	if len(b.ErrorCodes) > 0 && b.ErrorCodes[0] > 0 {
		return b.ErrorCodes
	}
	if found := leadingCode.FindStringSubmatch(b.Description); found != nil {
		if code, err := strconv.Atoi(found[1]); err == nil {
			return []int{code}
		}
	}
	return nil
}

// refusal classifies a response whose status is not 200.
func refusal(call msal.CallErr, p peer) *Error {
	resp := call.Resp
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	var body refusalBody
	// If the body is not JSON, body stays empty and the status decides.
	_ = json.NewDecoder(bytes.NewReader(text)).Decode(&body)
	e := &Error{TraceID: guid(body.TraceID), CorrelationID: guid(body.CorrelationID)}
	codes := body.codes()
	if len(codes) > 0 {
		e.Code = codes[0]
	}
	r, known := rulingOn(codes)
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
		e.Kind, e.Detail = Throttled, p.name+" throttles requests (status 429)"
	case known && !(resp.StatusCode >= 500 && (r.kind.Permanent() || r.kind == Refused)):
		e.Kind, e.Code, e.Retry, e.hint, e.Detail = r.kind, r.code, r.retry, p.hintFor(r.hint), r.detail
	case resp.StatusCode >= 500:
		e.Kind, e.Retry, e.Detail = Unavailable, RetrySoon, fmt.Sprintf("%s answered with status %d", p.name, resp.StatusCode)
	case p.binding && e.Code == 0:
		e.classifyOwn(call, body.Error, text)
	default:
		e.Kind, e.Retry = byOAuthError(body.Error, e.Code)
		e.Detail = fmt.Sprintf("entra refused the request with status %d", resp.StatusCode)
		if e.Code != 0 {
			e.Detail, e.hint = "entra refused the request", hintUnlisted
		}
	}
	if !e.Kind.Permanent() {
		e.RetryAfter = retryAfter(resp.Header, time.Now())
	}
	return e
}

// byOAuthError returns the kind of an OAuth error whose AADSTS code is unknown, or zero for none.
// The kind is permanent only if the OAuth error is clear: unauthorized_client, for example, is
// also the error for a new application that has not been replicated to all of Entra yet.
func byOAuthError(name string, code int) (Kind, Retry) {
	switch name {
	case "invalid_resource", "invalid_target":
		return InvalidResource, RetryNever
	case "invalid_scope":
		return InvalidScope, RetryNever
	case "invalid_tenant":
		return InvalidTenant, RetryNever
	case "temporarily_unavailable", "server_error":
		return Unavailable, RetrySoon
	}
	if name == "" && code == 0 {
		return Unavailable, RetryNever // no response of Entra, but of a server in between
	}
	return Refused, RetryOnce
}

// retryAfter parses Retry-After (RFC 9110, section 10.2.3): seconds, or a date, which is
// compared with the date of the response because the clocks may differ.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := strings.TrimSpace(h.Get("Retry-After"))
	// For a number that is out of range, ParseInt returns the nearest one.
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil || errors.Is(err, strconv.ErrRange) {
		return min(max(time.Duration(seconds)*time.Second, 0), maxRetryAfter)
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	if sent, err := http.ParseTime(h.Get("Date")); err == nil {
		now = sent
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

// guid returns s if it is a GUID, and the empty string otherwise: a malicious response could
// contain anything in its place.
func guid(s string) string {
	if _, ok := azure.ParseGUID(s); !ok {
		return ""
	}
	return s
}
