package entra

import (
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
)

// federatedLifetime is what the workload identity webhook asks the kubelet for.
const federatedLifetime = time.Hour

// Signer says whose key signs a federated token.
type Signer int

// The signers.
const (
	// ClusterKey is the cluster issuer's own, published key.
	ClusterKey Signer = iota
	// ForeignKey is a key that no one publishes, under a key ID of its own.
	ForeignKey
	// ForgedKey is that foreign key under the cluster key's ID.
	ForgedKey
)

// Claims describe a federated token. Each zero field has a good value, so that a
// test of a bad token spoils the one that it is about.
type Claims struct {
	// Issuer is iss. Empty: the server's cluster issuer.
	Issuer string
	// Subject is sub. Empty: no sub.
	Subject string
	// Audience is the one entry of aud. Empty: DefaultAudience.
	Audience string
	// IssuedAt is iat. Zero: now.
	IssuedAt time.Time
	// NotBefore is nbf. Zero: IssuedAt.
	NotBefore time.Time
	// Expiry is exp. Zero: one hour after IssuedAt.
	Expiry time.Time
	// Signer is whose key signs. Zero: ClusterKey.
	Signer Signer
	// Extra adds claims, or replaces them; a nil value removes one. Its values
	// have to be such as encoding/json takes.
	Extra map[string]any
}

// SignFederatedToken signs a service-account token, as the cluster's API server
// makes it. It is empty when Extra cannot be encoded.
func (s *Server) SignFederatedToken(c Claims) string {
	token, err := s.signFederated(s.completeClaims(c))
	if err != nil {
		return ""
	}
	return token
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
