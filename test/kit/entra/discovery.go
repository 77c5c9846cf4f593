package entra

import (
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// routes returns the handler of all paths.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/{tenant}/oauth2/v2.0/token", s.endpoint(TokenEndpoint, s.token))
	mux.Handle("GET /{tenant}/v2.0/.well-known/openid-configuration", s.endpoint(TenantDiscovery, s.tenantDiscovery))
	mux.Handle("GET /{tenant}/discovery/v2.0/keys", s.endpoint(TenantKeys, s.tenantKeys))
	mux.Handle("GET /common/discovery/instance", s.endpoint(InstanceDiscovery, s.instanceDiscovery))
	mux.Handle("GET "+issuerPath+"/.well-known/openid-configuration", s.endpoint(IssuerDiscovery, s.issuerDiscovery))
	mux.Handle("GET "+issuerPath+"/openid/v1/jwks", s.endpoint(IssuerKeys, s.issuerKeySet))
	mux.Handle("/", s.endpoint(UnknownPath, (*call).notFound))
	return unredirected(mux, s.endpoint(UnknownPath, (*call).notFound))
}

// unredirected answers a path that is not clean with 404. The mux would redirect it to the
// clean path, which Entra does not do, and which would hide clients that join URLs with
// too many slashes.
func unredirected(mux, notFound http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path.Clean("/"+r.URL.Path) != r.URL.Path {
			notFound.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (c *call) notFound() {
	c.write(http.StatusNotFound, plainText, nil)
	c.outcome(http.StatusNotFound, 0, "not found")
}

func (s *Server) tenantDiscovery(c *call) {
	if code := s.checkTenant(c); code != 0 {
		c.refuse(code)
		return
	}
	tenant := s.Authority()
	c.succeed(map[string]any{
		"token_endpoint":                        s.TokenURL(),
		"token_endpoint_auth_methods_supported": []string{"client_secret_post", "private_key_jwt", "client_secret_basic"},
		"jwks_uri":                              tenant + "/discovery/v2.0/keys",
		"response_modes_supported":              []string{"query", "fragment", "form_post"},
		"subject_types_supported":               []string{"pairwise"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
		"response_types_supported":              []string{"code", "id_token", "code id_token", "id_token token"},
		"scopes_supported":                      []string{"openid", "profile", "email", "offline_access"},
		"issuer":                                tenant + "/v2.0",
		"request_uri_parameter_supported":       false,
		"authorization_endpoint":                tenant + "/oauth2/v2.0/authorize",
		"device_authorization_endpoint":         tenant + "/oauth2/v2.0/devicecode",
		"http_logout_supported":                 true,
		"frontchannel_logout_supported":         true,
		"end_session_endpoint":                  tenant + "/oauth2/v2.0/logout",
		"claims_supported":                      []string{"sub", "iss", "aud", "exp", "iat"},
		"tenant_region_scope":                   "EU",
		"cloud_instance_name":                   s.host(),
	})
}

func (s *Server) tenantKeys(c *call) {
	if code := s.checkTenant(c); code != 0 {
		c.refuse(code)
		return
	}
	c.keys(s.tokenKey)
}

// instanceDiscovery accepts only this host as authority.
func (s *Server) instanceDiscovery(c *call) {
	asked, err := url.Parse(c.r.URL.Query().Get("authorization_endpoint"))
	if err != nil || !s.isOwn(asked.String()) {
		c.refuse(codeInvalidInstance)
		return
	}
	tenant, _, _ := strings.Cut(strings.TrimPrefix(asked.Path, "/"), "/")
	c.succeed(map[string]any{
		"tenant_discovery_endpoint": s.baseURL + "/" + tenant + "/v2.0/.well-known/openid-configuration",
		"api-version":               "1.1",
		"metadata": []map[string]any{{
			"preferred_network": s.host(),
			"preferred_cache":   s.host(),
			"aliases":           []string{s.host()},
		}},
	})
}

// issuerDiscovery answers with the same members as an API server.
func (s *Server) issuerDiscovery(c *call) {
	c.succeed(map[string]any{
		"issuer":                                s.Issuer(),
		"jwks_uri":                              s.Issuer() + "/openid/v1/jwks",
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{"RS256"},
	})
}

func (s *Server) issuerKeySet(c *call) { c.keys(s.cfg.Keys.cluster) }

func (c *call) keys(key func() (*signingKey, error)) {
	k, err := key()
	if err != nil {
		c.refuse(codeTransient)
		return
	}
	c.succeed(map[string]any{"keys": []jose.JSONWebKey{k.private.Public()}})
}

// succeed answers with status 200, after the edit of a fault if there is one.
func (c *call) succeed(answer map[string]any) {
	if c.edit != nil {
		c.edit(answer)
	}
	c.writeJSON(http.StatusOK, answer)
	c.outcome(http.StatusOK, 0, OutcomeIssued)
}

func (s *Server) host() string { return strings.TrimPrefix(s.baseURL, "https://") }
