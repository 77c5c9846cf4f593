package exchange

import (
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
	// noRegion keeps MSAL from reading MSAL_FORCE_REGION, which may tell it to
	// ask the node's real metadata service for a region.
	noRegion = "DisableMsalForceRegion"

	// maxLife bounds the life of a token that is believed. Entra's longest is
	// 28 hours; more than a month is a broken answer.
	maxLife = 31 * 24 * time.Hour

	// maxRetryAfter bounds the Retry-After of Entra, or of a proxy in front of it.
	// Entra asks for seconds to a few minutes; a mistake must not stop a pod for a day.
	maxRetryAfter = 10 * time.Minute
)

// unusable says why a token from Entra must not be returned. It is empty for a good one.
func unusable(result confidential.AuthResult, began time.Time) string {
	if life := result.ExpiresOn.Sub(began); life < MinLife || life > maxLife {
		return "entra's token has no usable expiry"
	}
	// RFC 6750, section 2.1. Applications put the token into a header as it is.
	if strings.ContainsFunc(result.AccessToken, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"'\,;<>`, r)
	}) {
		return "entra's token holds characters that no token has"
	}
	return ""
}

// scope is the v2 scope for a v1 resource. A resource that ends in a slash keeps
// it: Entra copies what precedes /.default into the token's audience.
func scope(resource azure.Resource) string {
	const all = "/.default"
	if strings.HasSuffix(string(resource), all) {
		return string(resource)
	}
	return string(resource) + all
}

// classify turns what MSAL returns into an Error. MSAL's own texts quote bodies
// and its errors carry the request with the assertion in it: of both, only a
// status and validated identifiers pass.
func classify(ctx context.Context, err error, peer, way string) *Error {
	// An answer counts, even if its body came so slowly that the time is over.
	if call, ok := errors.AsType[msal.CallErr](err); ok && call.Resp != nil {
		return refusal(call.Resp)
	}
	if fault, ok := errors.AsType[*routeFault](err); ok {
		return &Error{Kind: Unavailable, Detail: fault.detail, Fault: &Fault{Kind: fault.kind, Text: fault.detail}, Retry: fault.retry, hint: fault.hint}
	}
	late := ctx.Err() != nil || timedOut(err)
	fault := faultOf(err, late, peer, way)
	e := &Error{Kind: Unavailable, Detail: fault.Text, Fault: &fault, Retry: RetrySoon}
	if late {
		e.Kind = DeadlineExceeded
	}
	if fault.Kind == FaultMisfit {
		e.hint = hintAuthority
	}
	return e
}

// refusalBody has the members of an error body that are read.
type refusalBody struct {
	Error         string `json:"error"`
	Description   string `json:"error_description"`
	ErrorCodes    []int  `json:"error_codes"`
	TraceID       string `json:"trace_id"`
	CorrelationID string `json:"correlation_id"`
}

// leadingCode is the beginning of Entra's descriptions. A number further on may be part of
// something that the description quotes.
var leadingCode = regexp.MustCompile(`^AADSTS([0-9]{5,8})\b`)

// codes returns the AADSTS numbers of a refusal. Private clouds, and proxies in front of
// Entra, omit error_codes.
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

// refusal classifies an answer that is not a 200.
func refusal(resp *http.Response) *Error {
	var body refusalBody
	// A body that is not Entra's JSON leaves body empty: the status decides.
	_ = json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&body)
	e := &Error{TraceID: guid(body.TraceID), CorrelationID: guid(body.CorrelationID)}
	codes := body.codes()
	if len(codes) > 0 {
		e.Code = codes[0]
	}
	r, known := rulingOn(codes)
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
		e.Kind, e.Detail = Throttled, "entra asks for fewer requests"
	case known && !(resp.StatusCode >= 500 && r.kind.Permanent()):
		e.Kind, e.Code, e.Retry, e.hint, e.Detail = r.kind, r.code, r.retry, r.hint, r.detail
	case resp.StatusCode >= 500:
		e.Kind, e.Retry, e.Detail = Unavailable, RetrySoon, fmt.Sprintf("entra answers with status %d", resp.StatusCode)
	default:
		e.Kind, e.Detail = byOAuthError(body.Error), fmt.Sprintf("entra refuses with status %d", resp.StatusCode)
	}
	if !e.Kind.Permanent() {
		e.RetryAfter = retryAfter(resp.Header, time.Now())
	}
	return e
}

// byOAuthError is for AADSTS codes that this version does not know. It is permanent only if
// the OAuth error says so clearly: unauthorized_client, for example, is also the error for
// an application that was just created and has not reached all of Entra yet.
func byOAuthError(code string) Kind {
	switch code {
	case "invalid_resource", "invalid_target":
		return InvalidResource
	case "invalid_scope":
		return InvalidScope
	case "invalid_tenant":
		return InvalidTenant
	}
	return Unavailable
}

// retryAfter reads Retry-After (RFC 9110, section 10.2.3): seconds, or a date, which counts
// from the answer's own date because the clocks may differ.
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

// guid returns s if it is a GUID, and the empty string otherwise: a hostile answer could
// hold anything in its place.
func guid(s string) string {
	if _, ok := azure.ParseGUID(s); !ok {
		return ""
	}
	return s
}
