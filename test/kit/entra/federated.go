package entra

import (
	"context"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// federatedLifetime is the lifetime that the workload identity webhook requests from the
// kubelet.
const federatedLifetime = time.Hour

// Signer says which key signs a federated token.
type Signer int

// The signers.
const (
	// ClusterKey is the published key of the cluster's issuer.
	ClusterKey Signer = iota
	// ForeignKey is a key that is not published, with its own key ID.
	ForeignKey
	// ForgedKey is the foreign key with the key ID of the cluster's key.
	ForgedKey
)

// Claims are the claims of a federated token. Each zero field means a valid value, so that
// a test of a bad token sets only the field that is bad.
type Claims struct {
	// Issuer is iss. Empty: the server's cluster issuer.
	Issuer string
	// Subject is sub. Empty: no sub.
	Subject string
	// Audience is the only entry of aud. Empty: DefaultAudience.
	Audience string
	// IssuedAt is iat. Zero: now.
	IssuedAt time.Time
	// NotBefore is nbf. Zero: IssuedAt.
	NotBefore time.Time
	// Expiry is exp. Zero: one hour after IssuedAt.
	Expiry time.Time
	// Signer is the key that signs. Zero: ClusterKey.
	Signer Signer
	// Extra adds or replaces claims; a nil value removes a claim. encoding/json must be
	// able to encode the values.
	Extra map[string]any
}

// SignFederatedToken returns a signed service-account token like those of the cluster's API
// server. It returns "" if Extra cannot be encoded.
func (s *Server) SignFederatedToken(c Claims) string {
	token, err := s.signFederated(s.completeClaims(c))
	if err != nil {
		return ""
	}
	return token
}

// ReviewFederatedToken verifies a token of the cluster's issuer for an audience, as a TokenReview
// does, and returns its subject.
func (s *Server) ReviewFederatedToken(ctx context.Context, token, audience string) (subject string, err error) {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return "", err
	}
	var claims jwt.Claims
	if code := s.issuers.verify(ctx, s.Issuer(), parsed); code != 0 {
		return "", fmt.Errorf("the signature is not accepted (AADSTS%d)", code)
	}
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return "", err
	}
	return claims.Subject, claims.ValidateWithLeeway(jwt.Expected{Issuer: s.Issuer(), AnyAudience: jwt.Audience{audience}, Time: s.now()}, 0)
}

func (s *Server) completeClaims(c Claims) Claims {
	if c.Issuer == "" {
		c.Issuer = s.Issuer()
	}
	if c.Audience == "" {
		c.Audience = DefaultAudience
	}
	if c.IssuedAt.IsZero() {
		c.IssuedAt = s.now()
	}
	if c.NotBefore.IsZero() {
		c.NotBefore = c.IssuedAt
	}
	if c.Expiry.IsZero() {
		c.Expiry = c.IssuedAt.Add(federatedLifetime)
	}
	return c
}

func (s *Server) signFederated(c Claims) (string, error) {
	claims := map[string]any{
		"iss": c.Issuer,
		"aud": []string{c.Audience},
		"iat": jwt.NewNumericDate(c.IssuedAt),
		"nbf": jwt.NewNumericDate(c.NotBefore),
		"exp": jwt.NewNumericDate(c.Expiry),
		"jti": newUUID(),
	}
	if c.Subject != "" {
		claims["sub"] = c.Subject
	}
	for name, value := range c.Extra {
		if value == nil {
			delete(claims, name)
			continue
		}
		claims[name] = value
	}
	key, err := s.federatedKey(c.Signer)
	if err != nil {
		return "", err
	}
	return key.sign(claims)
}

func (s *Server) federatedKey(signer Signer) (*signingKey, error) {
	if signer == ClusterKey {
		return s.cfg.Keys.cluster()
	}
	foreign, err := s.cfg.Keys.foreign()
	if err != nil || signer == ForeignKey {
		return foreign, err
	}
	cluster, err := s.cfg.Keys.cluster()
	if err != nil {
		return nil, err
	}
	return foreign.named(cluster.private.KeyID)
}
