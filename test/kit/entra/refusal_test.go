package entra_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/entra"
)

const testCorrelationID = "bbbbbbbb-0000-4000-8000-000000000002"

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// goodForm returns the form of a valid token request.
func goodForm(idp *entra.Server) url.Values {
	return url.Values{
		"grant_type":            {"client_credentials"},
		"client_id":             {testClientID},
		"scope":                 {testResource + "/.default"},
		"client_assertion_type": {assertionType},
		"client_assertion":      {idp.SignFederatedToken(entra.Claims{Subject: testSubject})},
	}
}

// answer is an answer of the token endpoint, successful or not.
type answer struct {
	status int
	header http.Header

	TokenType    string `json:"token_type"`
	ExpiresIn    int    `json:"expires_in"`
	ExtExpiresIn int    `json:"ext_expires_in"`
	RefreshIn    *int   `json:"refresh_in"`
	AccessToken  string `json:"access_token"`

	Error         string `json:"error"`
	Description   string `json:"error_description"`
	Codes         []int  `json:"error_codes"`
	Timestamp     string `json:"timestamp"`
	TraceID       string `json:"trace_id"`
	CorrelationID string `json:"correlation_id"`
	ErrorURI      string `json:"error_uri"`
}

func post(t *testing.T, client *http.Client, endpoint string, form url.Values) answer {
	t.Helper()
	seen := observe(t.Context(), client, endpoint, form)
	a, err := seen.answer()
	if err != nil {
		t.Fatalf("observed %+v: %v", seen, err)
	}
	return a
}

func (o observed) answer() (answer, error) {
	a := answer{status: o.status, header: o.header}
	return a, errors.Join(o.err, o.bodyErr, json.Unmarshal([]byte(o.body), &a))
}

func TestRefusals(t *testing.T) {
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	const (
		otherTenant   = "cccccccc-0000-4000-8000-000000000003"
		otherClientID = "aaaaaaaa-0000-4000-8000-000000000009"
		otherSubject  = "system:serviceaccount:shop:till"
		otherAudience = "api://other.example.test"
		otherIssuer   = "https://issuer.example.test/"
	)
	idp := withoutListener(t, entra.Config{Now: func() time.Time { return noon }})
	idp.AddApplication(testApplication())
	idp.AddApplication(entra.Application{ClientID: "aaaaaaaa-0000-4000-8000-000000000002"})
	idp.AddApplication(entra.Application{
		ClientID: "aaaaaaaa-0000-4000-8000-000000000003",
		Credentials: []entra.FederatedCredential{
			{Subject: testSubject, Audience: otherAudience},
			{Subject: otherSubject},
			{Subject: testSubject, Issuer: otherIssuer},
		},
	})

	// Each request is valid except for the changes of its set or assertion.
	for _, test := range []struct {
		name      string
		set       map[string]string // an empty value removes the parameter
		assertion *entra.Claims
		tenant    string
		status    int
		err       string
		code      int
		text      string
	}{
		{name: "unknown tenant", tenant: otherTenant, status: 400, err: "invalid_tenant", code: 90002, text: "Tenant '" + otherTenant + "' not found."},
		{name: "no tenant", tenant: "tenant", status: 400, err: "invalid_request", code: 900023, text: "neither a valid DNS name"},
		{name: "no grant type", set: map[string]string{"grant_type": ""}, status: 400, err: "invalid_request", code: 900144, text: "'grant_type'"},
		{name: "no client ID", set: map[string]string{"client_id": ""}, status: 400, err: "invalid_request", code: 900144, text: "'client_id'"},
		{name: "no scope", set: map[string]string{"scope": ""}, status: 400, err: "invalid_request", code: 900144, text: "'scope'"},
		{name: "another grant", set: map[string]string{"grant_type": "password"}, status: 400, err: "unsupported_grant_type", code: 70003, text: "unsupported grant type"},
		{name: "no assertion", set: map[string]string{"client_assertion": ""}, status: 401, err: "invalid_client", code: 7000216, text: "'client_assertion'"},
		{name: "another assertion type", set: map[string]string{"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"}, status: 401, err: "invalid_client", code: 7000216, text: "'client_assertion'"},
		{name: "scope without default", set: map[string]string{"scope": testResource}, status: 400, err: "invalid_scope", code: 1002012, text: "/.default"},
		{name: "two scopes", set: map[string]string{"scope": testResource + "/.default https://management.azure.com/.default"}, status: 400, err: "invalid_scope", code: 70011, text: "'scope' is not valid"},
		{name: "scope of nothing", set: map[string]string{"scope": "/.default"}, status: 400, err: "invalid_scope", code: 70011, text: "/.default is not valid"},
		{name: "OpenID's scopes only", set: map[string]string{"scope": "openid profile"}, status: 400, err: "invalid_scope", code: 70011, text: "openid profile"},
		{name: "unknown application", set: map[string]string{"client_id": otherClientID}, status: 400, err: "unauthorized_client", code: 700016, text: "'" + otherClientID + "' was not found in the directory '" + entra.DefaultTenantID + "'"},
		{name: "application without credentials", set: map[string]string{"client_id": "aaaaaaaa-0000-4000-8000-000000000002"}, status: 401, err: "invalid_client", code: 70025, text: "no configured federated identity credentials"},
		{name: "unknown resource", set: map[string]string{"scope": "https://nothing.example.test/.default"}, status: 400, err: "invalid_resource", code: 500011, text: "named https://nothing.example.test was not found"},
		{name: "asterisk as resource", set: map[string]string{"scope": "https://*.vault.azure.net/.default"}, status: 400, err: "invalid_resource", code: 500011, text: "was not found"},

		{name: "no JWT", set: map[string]string{"client_assertion": "eyJhbGciOiJSUzI1NiJ9.e30"}, status: 400, err: "invalid_request", code: 50027, text: "malformed"},
		{name: "alg none", set: map[string]string{"client_assertion": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0."}, status: 400, err: "invalid_request", code: 50027, text: "malformed"},
		{name: "no exp", assertion: &entra.Claims{Subject: testSubject, Extra: map[string]any{"exp": nil}}, status: 400, err: "invalid_request", code: 50027, text: "malformed"},
		{name: "another issuer", assertion: &entra.Claims{Subject: testSubject, Issuer: otherIssuer}, status: 401, err: "invalid_client", code: 700211, text: "issuer '" + otherIssuer + "'"},
		{name: "issuer with an extra slash", assertion: &entra.Claims{Subject: testSubject, Issuer: idp.Issuer() + "/"}, status: 401, err: "invalid_client", code: 700211, text: "/cluster/'"},
		{name: "another audience", assertion: &entra.Claims{Subject: testSubject, Audience: otherAudience}, status: 401, err: "invalid_client", code: 700212, text: "audience '" + otherAudience + "'"},
		{name: "audience in another case", assertion: &entra.Claims{Subject: testSubject, Audience: "api://azureadtokenexchange"}, status: 401, err: "invalid_client", code: 700212, text: "audience"},
		{name: "no audience", assertion: &entra.Claims{Subject: testSubject, Extra: map[string]any{"aud": nil}}, status: 401, err: "invalid_client", code: 700212, text: "audience ''"},
		{name: "another subject", assertion: &entra.Claims{Subject: otherSubject}, status: 401, err: "invalid_client", code: 700213, text: "subject '" + otherSubject + "'"},
		{name: "subject in another case", assertion: &entra.Claims{Subject: "system:serviceaccount:Shop:cart"}, status: 401, err: "invalid_client", code: 7002138, text: "case-sensitive"},
		{name: "no subject", assertion: &entra.Claims{}, status: 401, err: "invalid_client", code: 700213, text: "subject ''"},
		{name: "claims of different credentials", set: map[string]string{"client_id": "aaaaaaaa-0000-4000-8000-000000000003"}, status: 401, err: "invalid_client", code: 70021, text: "Assertion Subject: '" + testSubject + "'"},
		{name: "expired now", assertion: &entra.Claims{Subject: testSubject, IssuedAt: noon.Add(-time.Hour), Expiry: noon}, status: 401, err: "invalid_client", code: 700024, text: "expiry time of assertion 2026-03-01T12:00:00.0000000Z"},
		{name: "not valid yet", assertion: &entra.Claims{Subject: testSubject, NotBefore: noon.Add(time.Second)}, status: 401, err: "invalid_client", code: 700024, text: "valid from 2026-03-01T12:00:01.0000000Z"},
		{name: "foreign key", assertion: &entra.Claims{Subject: testSubject, Signer: entra.ForeignKey}, status: 401, err: "invalid_client", code: 7000272, text: "could not be found in the metadata of identity provider " + idp.Issuer()},
		{name: "forged signature", assertion: &entra.Claims{Subject: testSubject, Signer: entra.ForgedKey}, status: 401, err: "invalid_client", code: 700027, text: "invalid signature"},
	} {
		t.Run(test.name, func(t *testing.T) {
			idp.Reset()
			form := goodForm(idp)
			if test.assertion != nil {
				form.Set("client_assertion", idp.SignFederatedToken(*test.assertion))
			}
			for name, value := range test.set {
				if form.Set(name, value); value == "" {
					form.Del(name)
				}
			}
			endpoint := idp.TokenURL()
			if test.tenant != "" {
				endpoint = idp.AuthorityHost() + test.tenant + "/oauth2/v2.0/token"
			}
			got := post(t, idp.Client(), endpoint, form)
			if got.status != test.status || got.Error != test.err || len(got.Codes) != 1 || got.Codes[0] != test.code {
				t.Errorf("got %d %s %v, want %d %s %d\n%s", got.status, got.Error, got.Codes, test.status, test.err, test.code, got.Description)
			}
			if !strings.Contains(got.Description, test.text) {
				t.Errorf("description %q does not contain %q", got.Description, test.text)
			}
			if got.AccessToken != "" {
				t.Error("a refusal contains an access token")
			}
			if seen := idp.Exchanges()[0]; seen.Code != test.code || seen.Outcome != fmt.Sprintf("AADSTS%d", test.code) || seen.Status != test.status {
				t.Errorf("the record has %s, code %d, status %d", seen.Outcome, seen.Code, seen.Status)
			}
		})
	}
}

func TestRefusalText(t *testing.T) {
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	idp := withoutListener(t, entra.Config{Now: func() time.Time { return noon }})
	got := post(t, idp.Client(), idp.TokenURL(), goodForm(idp))

	want := regexp.MustCompile(`^AADSTS700016: Application with .* Trace ID: ([0-9a-f-]{36}) Correlation ID: ` + testCorrelationID + ` Timestamp: 2026-03-01 12:00:00Z$`)
	match := want.FindStringSubmatch(got.Description)
	if match == nil {
		t.Fatalf("description: %q", got.Description)
	}
	if match[1] != got.TraceID || got.header.Get("x-ms-request-id") != got.TraceID {
		t.Errorf("trace IDs differ: %s, %s, %s", match[1], got.TraceID, got.header.Get("x-ms-request-id"))
	}
	if got.CorrelationID != testCorrelationID || got.Timestamp != "2026-03-01 12:00:00Z" {
		t.Errorf("correlation ID %s, timestamp %s", got.CorrelationID, got.Timestamp)
	}
	if want := idp.AuthorityHost() + "error?code=700016"; got.ErrorURI != want {
		t.Errorf("error_uri: got %s, want %s", got.ErrorURI, want)
	}
	if got := got.header.Get("Content-Type"); got != "application/json; charset=utf-8" {
		t.Errorf("content type: %s", got)
	}
}

func TestAssertionExpiry(t *testing.T) {
	expiry := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	now := expiry.Add(-time.Nanosecond)
	idp := withoutListener(t, entra.Config{Now: func() time.Time { return now }})
	idp.AddApplication(testApplication())
	form := goodForm(idp)
	form.Set("client_assertion", idp.SignFederatedToken(entra.Claims{Subject: testSubject, IssuedAt: expiry.Add(-time.Hour), Expiry: expiry}))
	if got := post(t, idp.Client(), idp.TokenURL(), form); got.status != http.StatusOK {
		t.Errorf("1 ns before its expiry: %d %s", got.status, got.Description)
	}
	now = expiry
	if got := post(t, idp.Client(), idp.TokenURL(), form); len(got.Codes) != 1 || got.Codes[0] != 700024 {
		t.Errorf("at its expiry: %d %v", got.status, got.Codes)
	}
}

func TestAccessTokenClaims(t *testing.T) {
	idp := withoutListener(t, entra.Config{TokenLifetime: time.Hour, RefreshIn: 30 * time.Minute})
	idp.AddApplication(testApplication())
	idp.AddResource("https://*.example.test")
	idp.AddResource("dddddddd-0000-4000-8000-000000000004")

	ids := make(map[string]bool)
	for scope, resource := range map[string]string{
		"https://vault.azure.net/.default":                    "https://vault.azure.net",
		"https://database.windows.net//.default":              "https://database.windows.net/",
		"https://management.azure.com/.default":               "https://management.azure.com",
		"https://account.blob.core.windows.net/.default":      "https://account.blob.core.windows.net",
		"https://a.example.test/.default openid profile":      "https://a.example.test",
		"dddddddd-0000-4000-8000-000000000004/.default":       "dddddddd-0000-4000-8000-000000000004",
		"offline_access https://Graph.microsoft.com/.default": "https://Graph.microsoft.com",
	} {
		form := goodForm(idp)
		form.Set("scope", scope)
		form.Set("client_id", strings.ToUpper(testClientID))
		got := post(t, idp.Client(), idp.TokenURL(), form)
		if got.status != http.StatusOK {
			t.Errorf("%s: %d %s", scope, got.status, got.Description)
			continue
		}
		if got.TokenType != "Bearer" || got.ExpiresIn != 3600 || got.ExtExpiresIn != 3600 || got.RefreshIn == nil || *got.RefreshIn != 1800 {
			t.Errorf("%s: answer %+v", scope, got)
		}
		token, err := idp.VerifyAccessToken(got.AccessToken)
		if err != nil {
			t.Errorf("%s: %v", scope, err)
		}
		if token.Resource != resource || token.ClientID != testClientID {
			t.Errorf("%s: token is for %s, client %s", scope, token.Resource, token.ClientID)
		}
		ids[token.ID] = true
	}
	if len(ids) != 7 {
		t.Errorf("%d tokens share IDs: %v", 7, ids)
	}
}

func TestAccessTokenAlgorithms(t *testing.T) {
	for algorithm, cfg := range map[string]entra.Config{"RS256": {}, "ES256": {QuickTokens: true}} {
		idp := withoutListener(t, cfg)
		idp.AddApplication(testApplication())
		token := post(t, idp.Client(), idp.TokenURL(), goodForm(idp)).AccessToken
		header, _, _ := strings.Cut(token, ".")
		decoded, err := base64.RawURLEncoding.DecodeString(header)
		if err != nil || !strings.Contains(string(decoded), `"alg":"`+algorithm+`"`) {
			t.Errorf("%s: header %q (%v)", algorithm, decoded, err)
		}
		if _, err := idp.VerifyAccessToken(token); err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
		if _, err := idp.VerifyAccessToken(corrupt(token)); err == nil {
			t.Errorf("%s: an invalid signature was verified", algorithm)
		}
	}
}

// corrupt changes one character in the middle of the token's signature.
func corrupt(token string) string {
	i := strings.LastIndex(token, ".") + 10
	other := "A"
	if token[i] == 'A' {
		other = "B"
	}
	return token[:i] + other + token[i+1:]
}

func TestAccessTokenOfAnotherServerIsRefused(t *testing.T) {
	idp := start(t, entra.Config{})
	other := withoutListener(t, entra.Config{Keys: entra.NewKeys()})
	other.AddApplication(testApplication())
	got := post(t, other.Client(), other.TokenURL(), goodForm(other))
	if _, err := idp.VerifyAccessToken(got.AccessToken); err == nil {
		t.Error("a token of another server was verified")
	}
	if _, err := entra.DecodeAccessToken(got.AccessToken); err != nil {
		t.Errorf("decode: %v", err)
	}
	if _, err := entra.DecodeAccessToken("no token"); err == nil {
		t.Error("an invalid token was decoded")
	}
}
