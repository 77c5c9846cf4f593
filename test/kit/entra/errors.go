package entra

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// The AADSTS codes that the server has texts for. Status, error and text are from public
// bug reports that quote Entra's answers, if such reports could be found. The server's own
// checks return the first block of codes. The second block is for faults only.
const (
	codeMalformedAssertion = 50027
	codeMissingParameter   = 900144
	codeUnsupportedGrant   = 70003
	codeMissingAssertion   = 7000216
	codeWrongMethod        = 900561
	codeTenantSyntax       = 900023
	codeUnknownTenant      = 90002
	codeUnknownApplication = 700016
	codeNoCredentials      = 70025
	codeNoMatch            = 70021
	codeIssuerMismatch     = 700211
	codeAudienceMismatch   = 700212
	codeSubjectMismatch    = 700213
	codeSubjectCase        = 7002138
	codeUnknownKey         = 7000272
	codeBadSignature       = 700027
	codeOutsideTimeRange   = 700024
	codeIssuerUnreachable  = 90061
	codeScopeNotDefault    = 1002012
	codeInvalidScope       = 70011
	codeUnknownResource    = 500011
	codeInvalidInstance    = 50049

	codeSignatureValidation  = 50013
	codeTransient            = 90033
	codeApplicationDisabled  = 7000112
	codeRequestLoop          = 50196
	codeExternalOIDCEndpoint = 50166
	codeExternalOIDCRequest  = 501661
)

// refusal is Entra's answer for one code.
type refusal struct {
	status int
	err    string
	text   func(c *call) string
}

func fixed(text string) func(*call) string {
	return func(*call) string { return text }
}

const federationHint = "Check your federated identity credential Subject, Audience and Issuer against the presented assertion. https://learn.microsoft.com/entra/workload-id/workload-identity-federation"

// refusalOf returns the refusal for a code, or invalid_request for an unknown code.
func refusalOf(code int) refusal {
	if r, ok := refusals[code]; ok {
		return r
	}
	return refusal{http.StatusBadRequest, "invalid_request", fixed("The request was refused.")}
}

var refusals = map[int]refusal{
	codeMalformedAssertion: {400, "invalid_request", fixed("JWT token is invalid or malformed.")},
	codeMissingParameter: {400, "invalid_request", func(c *call) string {
		return fmt.Sprintf("The request body must contain the following parameter: '%s'.", c.missing)
	}},
	codeUnsupportedGrant: {400, "unsupported_grant_type", fixed("The app requested an unsupported grant type.")},
	codeMissingAssertion: {401, "invalid_client", fixed("'client_assertion', 'client_secret' or 'request' is required for the 'client_credentials' grant type.")},
	codeWrongMethod: {400, "invalid_request", func(c *call) string {
		return fmt.Sprintf("The endpoint only accepts POST requests. Received a %s request.", c.x.Method)
	}},
	codeTenantSyntax: {400, "invalid_request", func(c *call) string {
		return fmt.Sprintf("Specified tenant identifier '%s' is neither a valid DNS name, nor a valid external domain.", c.x.TenantID)
	}},
	codeUnknownTenant: {400, "invalid_tenant", func(c *call) string {
		return fmt.Sprintf("Tenant '%s' not found. Check to make sure you have the correct tenant ID and are signing into the correct cloud. Check with your subscription administrator, this may happen if there are no active subscriptions for the tenant.", c.x.TenantID)
	}},
	codeUnknownApplication: {400, "unauthorized_client", func(c *call) string {
		return fmt.Sprintf("Application with identifier '%s' was not found in the directory '%s'. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You may have sent your authentication request to the wrong tenant.", c.x.ClientID, c.x.TenantID)
	}},
	codeNoCredentials: {401, "invalid_client", func(c *call) string {
		return fmt.Sprintf("The client '%s' has no configured federated identity credentials.", c.x.ClientID)
	}},
	codeNoMatch: {401, "invalid_client", func(c *call) string {
		return fmt.Sprintf("No matching federated identity record found for presented assertion. Assertion Issuer: '%s'. Assertion Subject: '%s'. Assertion Audience: '%s'. %s", c.x.Issuer, c.x.Subject, c.x.Audience, federationHint)
	}},
	codeIssuerMismatch: {401, "invalid_client", func(c *call) string {
		return fmt.Sprintf("No matching federated identity record found for presented assertion issuer '%s'. %s", c.x.Issuer, federationHint)
	}},
	codeAudienceMismatch: {401, "invalid_client", func(c *call) string {
		return fmt.Sprintf("No matching federated identity record found for presented assertion audience '%s'. %s", c.x.Audience, federationHint)
	}},
	codeSubjectMismatch: {401, "invalid_client", func(c *call) string {
		return fmt.Sprintf("No matching federated identity record found for presented assertion subject '%s'. %s", c.x.Subject, federationHint)
	}},
	codeSubjectCase: {401, "invalid_client", func(c *call) string {
		return fmt.Sprintf("No matching federated identity record found for presented assertion subject '%s'. The subject matches with case-insensitive comparison, but not with case-sensitive comparison. %s", c.x.Subject, federationHint)
	}},
	codeUnknownKey: {401, "invalid_client", func(c *call) string {
		return fmt.Sprintf("The certificate with identifier %s used to sign the federated credential could not be found in the metadata of identity provider %s. Please validate that your Identity Provider's metadata exposes the key used to sign the incoming token.", c.keyID, c.x.Issuer)
	}},
	codeBadSignature: {401, "invalid_client", fixed("Client assertion contains an invalid signature. [Reason - Key was found, but use of the key to verify the signature failed.]")},
	codeOutsideTimeRange: {401, "invalid_client", func(c *call) string {
		return fmt.Sprintf("Client assertion is not within its valid time range. Current time: %s, assertion valid from %s, expiry time of assertion %s. Review the documentation at https://learn.microsoft.com/entra/identity-platform/certificate-credentials .",
			preciseTime(c.x.Time), preciseTime(c.x.AssertionFrom), preciseTime(c.x.AssertionUntil))
	}},
	codeIssuerUnreachable:    {400, "invalid_request", fixed("Request to External OIDC endpoint failed.")},
	codeExternalOIDCEndpoint: {400, "invalid_request", fixed("Request to External OIDC endpoint failed.")},
	codeExternalOIDCRequest:  {400, "invalid_request", fixed("Request to External OIDC endpoint failed.")},
	codeScopeNotDefault: {400, "invalid_scope", func(c *call) string {
		return fmt.Sprintf("The provided value for scope %s is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier (application ID URI).", c.x.Scope)
	}},
	codeInvalidScope: {400, "invalid_scope", func(c *call) string {
		return fmt.Sprintf("The provided request must include a 'scope' input parameter. The provided value for the input parameter 'scope' is not valid. The scope %s is not valid.", c.x.Scope)
	}},
	codeUnknownResource: {400, "invalid_resource", func(c *call) string {
		return fmt.Sprintf("The resource principal named %s was not found in the tenant named %s. This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. You might have sent your authentication request to the wrong tenant.", c.x.Resource, c.x.TenantID)
	}},
	codeInvalidInstance:     {400, "invalid_instance", fixed("Unknown or invalid instance.")},
	codeSignatureValidation: {400, "invalid_grant", fixed("Assertion failed signature validation. [Reason - The key was not found.]")},
	codeTransient:           {503, "temporarily_unavailable", fixed("A transient error has occurred. Please try again.")},
	codeApplicationDisabled: {400, "unauthorized_client", func(c *call) string {
		return fmt.Sprintf("Application '%s' is disabled.", c.x.ClientID)
	}},
	codeRequestLoop: {400, "invalid_grant", fixed("The server terminated an operation because it encountered a client request loop. Please contact your app vendor.")},
}

// stsError is the body of Entra's error answers.
type stsError struct {
	Error            string `json:"error"`
	ErrorDescription string `json:"error_description"`
	ErrorCodes       []int  `json:"error_codes"`
	Timestamp        string `json:"timestamp"`
	TraceID          string `json:"trace_id"`
	CorrelationID    string `json:"correlation_id"`
	ErrorURI         string `json:"error_uri"`
}

// refuse answers with an AADSTS code and Entra's text for it.
func (c *call) refuse(code int) {
	r := refusalOf(code)
	c.refuseAs(r.status, r.err, code, r.text(c))
}

func (c *call) refuseAs(status int, errorName string, code int, text string) {
	stamp := c.x.Time.Format("2006-01-02 15:04:05Z")
	c.writeJSON(status, stsError{
		Error: errorName,
		ErrorDescription: fmt.Sprintf("AADSTS%d: %s Trace ID: %s Correlation ID: %s Timestamp: %s",
			code, text, c.x.TraceID, c.x.CorrelationID, stamp),
		ErrorCodes:    []int{code},
		Timestamp:     stamp,
		TraceID:       c.x.TraceID,
		CorrelationID: c.x.CorrelationID,
		ErrorURI:      c.s.AuthorityHost() + "error?code=" + strconv.Itoa(code),
	})
	c.outcome(status, code, "AADSTS"+strconv.Itoa(code))
}

func (c *call) writeJSON(status int, body any) {
	// An error cannot happen: the bodies are this package's types, or maps of values that
	// encoding/json can encode.
	encoded, err := json.Marshal(body)
	if err != nil {
		c.abort()
	}
	c.write(status, "application/json; charset=utf-8", encoded)
}

func preciseTime(t time.Time) string {
	return t.UTC().Format("2006-01-02T15:04:05.0000000Z")
}
