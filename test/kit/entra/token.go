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

// token handles the v2 token endpoint for client credentials with an assertion.
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

// check returns the AADSTS code of the first check that fails, or 0. The order is Entra's
// as far as it is known: tenant, form, application, assertion, resource.
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

// tenantSyntax matches a GUID or a domain name.
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

// checkAssertion compares the claims with the credentials before it fetches the issuer's
// keys: a token must not decide from which host the server fetches.
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

// matchCredentials returns 0 if a credential has all claims. Otherwise it returns the code
// of a claim that no credential has, or codeNoMatch if only the combination is wrong.
func matchCredentials(credentials []FederatedCredential, claims jwt.Claims) int {
	issuer := func(f FederatedCredential) bool { return f.Issuer == claims.Issuer }
	audience := func(f FederatedCredential) bool { return slices.Contains(claims.Audience, f.Audience) }
	subject := func(f FederatedCredential) bool { return f.Subject == claims.Subject }
	sameSubject := func(f FederatedCredential) bool {
		return issuer(f) && audience(f) && strings.EqualFold(f.Subject, claims.Subject)
	}
	all := func(f FederatedCredential) bool { return issuer(f) && audience(f) && subject(f) }
	switch {
	case slices.ContainsFunc(credentials, all):
		return 0
	case slices.ContainsFunc(credentials, sameSubject):
		return codeSubjectCase
	case !slices.ContainsFunc(credentials, issuer):
		return codeIssuerMismatch
	case !slices.ContainsFunc(credentials, audience):
		return codeAudienceMismatch
	case !slices.ContainsFunc(credentials, subject):
		return codeSubjectMismatch
	}
	return codeNoMatch
}

// checkTime returns 0 from the token's nbf on until just before its exp.
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

// checkScope accepts exactly one scope besides those of OpenID. It must end in /.default.
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

// resourceOf returns the resource of the first scope that is not one of OpenID's, and the
// number of further such scopes. The resource keeps a trailing slash: the scope
// https://database.windows.net//.default is for https://database.windows.net/.
func resourceOf(scope string) (resource string, others int) {
	fields := strings.Fields(scopeWithoutOpenID(scope))
	if len(fields) == 0 {
		return "", 0
	}
	return strings.TrimSuffix(fields[0], defaultScopeSuffix), len(fields) - 1
}

// scopeWithoutOpenID removes the scopes that MSAL adds to every request. They have no
// meaning for client credentials.
func scopeWithoutOpenID(scope string) string {
	fields := slices.DeleteFunc(strings.Fields(scope), func(f string) bool {
		return f == "openid" || f == "profile" || f == "offline_access"
	})
	return strings.Join(fields, " ")
}
