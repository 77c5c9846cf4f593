package entra

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// token is the v2 token endpoint for client credentials with an assertion.
func (s *Server) token(c *call) {
	if code := s.check(c); code != 0 {
		c.refuse(code)
		return
	}
	token, id, err := s.issue(c.app, c.x.Resource, c.x.Time)
	if err != nil {
		c.refuse(codeTransient)
		return
	}
	s.record.update(func() { c.x.TokenID = id })
	c.writeToken(token)
}

func (c *call) writeToken(token string) {
	answer := map[string]any{
		"token_type":     "Bearer",
		"expires_in":     int64(c.s.cfg.TokenLifetime / time.Second),
		"ext_expires_in": int64(c.s.cfg.TokenLifetime / time.Second),
		"access_token":   token,
	}
	if c.s.cfg.RefreshIn > 0 {
		answer["refresh_in"] = int64(c.s.cfg.RefreshIn / time.Second)
	}
	c.succeed(answer)
}

// check returns the code of the first thing that is wrong with the request, or 0.
// The order is Entra's as far as it can be told: the tenant, the request's form,
// the application, the assertion, then what is asked for.
func (s *Server) check(c *call) int {
	for _, step := range []func(*call) int{
		s.checkTenant, s.checkForm, s.checkApplication, s.checkAssertion, s.checkResource,
	} {
		if code := step(c); code != 0 {
			return code
		}
	}
	return 0
}

func (s *Server) checkForm(c *call) int {
	if c.r.Method != http.MethodPost {
		return codeWrongMethod
	}
	form := c.r.PostForm
	for _, name := range []string{"grant_type", "client_id", "scope"} {
		if form.Get(name) == "" {
			c.missing = name
			return codeMissingParameter
		}
	}
	if form.Get("grant_type") != "client_credentials" {
		return codeUnsupportedGrant
	}
	if form.Get("client_assertion") == "" || form.Get("client_assertion_type") != assertionType {
		return codeMissingAssertion
	}
	return checkScope(c.x.Scope)
}

func (s *Server) checkTenant(c *call) int {
	tenant := c.x.TenantID
	switch {
	case strings.EqualFold(tenant, s.cfg.TenantID):
		return 0
	case !tenantSyntax.MatchString(tenant):
		return codeTenantSyntax
	}
	return codeUnknownTenant
}

// tenantSyntax is a GUID or a domain name.
var tenantSyntax = regexp.MustCompile(`^(?i)([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[a-z0-9-]+(\.[a-z0-9-]+)+)$`)

func (s *Server) checkApplication(c *call) int {
	app, ok := s.directory.application(c.x.ClientID)
	if !ok {
		return codeUnknownApplication
	}
	if len(app.Credentials) == 0 {
		return codeNoCredentials
	}
	c.app = app
	return 0
}

// checkAssertion matches the claims before it asks the issuer for its keys: a
// token must not choose which host is asked.
func (s *Server) checkAssertion(c *call) int {
	if c.assertion == nil || c.claims.Expiry == nil {
		return codeMalformedAssertion
	}
	if code := matchCredentials(c.app.Credentials, c.claims); code != 0 {
		return code
	}
	if code := s.issuers.verify(c.r.Context(), c.claims.Issuer, c.assertion); code != 0 {
		return code
	}
	return s.checkTime(c.x.Time, c.claims)
}

// matchCredentials names the claim that no credential has. Where each is in some
// credential, but no credential has all, it is the combination that is wrong.
func matchCredentials(credentials []FederatedCredential, claims jwt.Claims) int {
	issuer := func(f FederatedCredential) bool { return f.Issuer == claims.Issuer }
	audience := func(f FederatedCredential) bool { return slices.Contains(claims.Audience, f.Audience) }
	subject := func(f FederatedCredential) bool { return f.Subject == claims.Subject }
	all := func(f FederatedCredential) bool { return issuer(f) && audience(f) && subject(f) }
	switch {
	case slices.ContainsFunc(credentials, all):
		return 0
	case !slices.ContainsFunc(credentials, issuer):
		return codeIssuerMismatch
	case !slices.ContainsFunc(credentials, audience):
		return codeAudienceMismatch
	case !slices.ContainsFunc(credentials, subject):
		return codeSubjectMismatch
	}
	return codeNoMatch
}

// checkTime holds a token for good from its nbf on and until before its exp.
func (s *Server) checkTime(now time.Time, claims jwt.Claims) int {
	if !now.Add(-s.cfg.ClockSkew).Before(claims.Expiry.Time()) {
		return codeOutsideTimeRange
	}
	if claims.NotBefore != nil && now.Add(s.cfg.ClockSkew).Before(claims.NotBefore.Time()) {
		return codeOutsideTimeRange
	}
	return 0
}

func (s *Server) checkResource(c *call) int {
	if s.directory.knowsResource(c.x.Resource) {
		return 0
	}
	return codeUnknownResource
}

const defaultScopeSuffix = "/.default"

// checkScope takes one scope that ends in /.default, besides those of OpenID.
func checkScope(scope string) int {
	resource, others := resourceOf(scope)
	switch {
	case others > 0 || resource == "":
		return codeInvalidScope
	case !strings.HasSuffix(scopeWithoutOpenID(scope), defaultScopeSuffix):
		return codeScopeNotDefault
	}
	return 0
}

// resourceOf is the resource of the scope that is not one of OpenID's, and the
// number of further such scopes. The resource keeps a trailing slash: the scope
// https://database.windows.net//.default is for https://database.windows.net/.
func resourceOf(scope string) (resource string, others int) {
	fields := strings.Fields(scopeWithoutOpenID(scope))
	if len(fields) == 0 {
		return "", 0
	}
	return strings.TrimSuffix(fields[0], defaultScopeSuffix), len(fields) - 1
}

// scopeWithoutOpenID drops the scopes that MSAL adds to every request and that
// mean nothing to client credentials.
func scopeWithoutOpenID(scope string) string {
	fields := slices.DeleteFunc(strings.Fields(scope), func(f string) bool {
		return f == "openid" || f == "profile" || f == "offline_access"
	})
	return strings.Join(fields, " ")
}
