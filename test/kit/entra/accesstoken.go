package entra

import (
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// AccessToken holds the claims of an access token.
type AccessToken struct {
	// Resource is aud, as in the request.
	Resource string
	// ClientID is appid, the application that the token is for.
	ClientID string
	// ObjectID is oid, and TenantID tid.
	ObjectID, TenantID string
	// Issuer is iss.
	Issuer string
	// ID is uti, which is unique.
	ID string
	// IssuedAt, NotBefore and ExpiresOn are iat, nbf and exp.
	IssuedAt, NotBefore, ExpiresOn time.Time
}

// accessClaims are those claims of Entra's v1 tokens that this repository reads.
type accessClaims struct {
	Audience  string          `json:"aud"`
	Issuer    string          `json:"iss"`
	IssuedAt  jwt.NumericDate `json:"iat"`
	NotBefore jwt.NumericDate `json:"nbf"`
	Expiry    jwt.NumericDate `json:"exp"`
	AppID     string          `json:"appid"`
	AppIDACR  string          `json:"appidacr"`
	AZP       string          `json:"azp"`
	IDType    string          `json:"idtyp"`
	ObjectID  string          `json:"oid"`
	Subject   string          `json:"sub"`
	TenantID  string          `json:"tid"`
	MIResID   string          `json:"xms_mirid,omitempty"`
	UTI       string          `json:"uti"`
	Version   string          `json:"ver"`
}

// issue signs an access token and returns it with its ID.
func (s *Server) issue(app Application, resource string, now time.Time) (token, id string, err error) {
	key, err := s.tokenKey()
	if err != nil {
		return "", "", err
	}
	id = newUUID()
	now = now.Truncate(time.Second)
	token, err = jwt.Signed(key.signer).Claims(accessClaims{
		Audience:  resource,
		Issuer:    s.tokenIssuer(),
		IssuedAt:  *jwt.NewNumericDate(now),
		NotBefore: *jwt.NewNumericDate(now),
		Expiry:    *jwt.NewNumericDate(now.Add(s.cfg.TokenLifetime)),
		AppID:     app.ClientID,
		AppIDACR:  "2",
		AZP:       app.ClientID,
		IDType:    "app",
		ObjectID:  app.ObjectID,
		Subject:   app.ObjectID,
		TenantID:  s.cfg.TenantID,
		MIResID:   app.ResourceID,
		UTI:       id,
		Version:   "1.0",
	}).Serialize()
	return token, id, err
}

// tokenKey returns the key that signs access tokens.
func (s *Server) tokenKey() (*signingKey, error) {
	if s.cfg.QuickTokens {
		return s.cfg.Keys.quick()
	}
	return s.cfg.Keys.token()
}

// tokenIssuer returns the iss of access tokens.
func (s *Server) tokenIssuer() string { return s.baseURL + "/" + s.cfg.TenantID + "/" }

// DecodeAccessToken returns the claims of an access token without verifying it.
func DecodeAccessToken(token string) (AccessToken, error) {
	parsed, err := parseAccessToken(token)
	if err != nil {
		return AccessToken{}, err
	}
	var claims accessClaims
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return AccessToken{}, fmt.Errorf("read the access token's claims: %w", err)
	}
	return claims.accessToken(), nil
}

// VerifyAccessToken returns the claims of an access token after the checks that a resource
// would make: this server has issued the token, and it is valid now.
func (s *Server) VerifyAccessToken(token string) (AccessToken, error) {
	parsed, err := parseAccessToken(token)
	if err != nil {
		return AccessToken{}, err
	}
	key, err := s.tokenKey()
	if err != nil {
		return AccessToken{}, err
	}
	var claims accessClaims
	if err := parsed.Claims(key.private.Public(), &claims); err != nil {
		return AccessToken{}, fmt.Errorf("verify the access token: %w", err)
	}
	t, now := claims.accessToken(), s.now()
	if t.Issuer != s.tokenIssuer() {
		return AccessToken{}, fmt.Errorf("access token has another issuer, %q", t.Issuer)
	}
	if now.Before(t.NotBefore) || !now.Before(t.ExpiresOn) {
		return AccessToken{}, fmt.Errorf("access token is not valid now, but from %s to %s", t.NotBefore, t.ExpiresOn)
	}
	return t, nil
}

func parseAccessToken(token string) (*jwt.JSONWebToken, error) {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256, jose.ES256})
	if err != nil {
		return nil, fmt.Errorf("parse the access token: %w", err)
	}
	return parsed, nil
}

func (c accessClaims) accessToken() AccessToken {
	return AccessToken{
		Resource:  c.Audience,
		ClientID:  c.AppID,
		ObjectID:  c.ObjectID,
		TenantID:  c.TenantID,
		Issuer:    c.Issuer,
		ID:        c.UTI,
		IssuedAt:  c.IssuedAt.Time().UTC(),
		NotBefore: c.NotBefore.Time().UTC(),
		ExpiresOn: c.Expiry.Time().UTC(),
	}
}
