package entra

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// signingBits is the size of Entra's and of Kubernetes' signing keys.
const signingBits = 2048

// signingKey signs tokens.
type signingKey struct {
	private jose.JSONWebKey
	signer  jose.Signer
}

// Keys are the signing keys of a Server. Each key is generated at its first use.
type Keys struct {
	token   func() (*signingKey, error) // Entra's, for access tokens
	cluster func() (*signingKey, error) // the issuer's, for federated tokens
	foreign func() (*signingKey, error) // a key that is not published
	quick   func() (*signingKey, error) // Entra's with Config.QuickTokens
}

// NewKeys returns keys that several Servers can share.
func NewKeys() *Keys {
	return &Keys{
		token:   sync.OnceValues(newRSAKey),
		cluster: sync.OnceValues(newRSAKey),
		foreign: sync.OnceValues(newRSAKey),
		quick:   sync.OnceValues(newECDSAKey),
	}
}

func newRSAKey() (*signingKey, error) {
	private, err := rsa.GenerateKey(rand.Reader, signingBits)
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w", err)
	}
	return newSigningKey(private, jose.RS256)
}

func newECDSAKey() (*signingKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w", err)
	}
	return newSigningKey(private, jose.ES256)
}

// newSigningKey returns a signing key whose ID is its RFC 7638 thumbprint.
func newSigningKey(private any, algorithm jose.SignatureAlgorithm) (*signingKey, error) {
	jwk := jose.JSONWebKey{Key: private, Algorithm: string(algorithm), Use: "sig"}
	thumbprint, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("name a signing key: %w", err)
	}
	return (&signingKey{private: jwk}).named(base64.RawURLEncoding.EncodeToString(thumbprint))
}

// named returns the same key with the given ID.
func (k *signingKey) named(id string) (*signingKey, error) {
	jwk := k.private
	jwk.KeyID = id
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(jwk.Algorithm), Key: jwk},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("make a signer: %w", err)
	}
	return &signingKey{private: jwk, signer: signer}, nil
}

func (k *signingKey) sign(claims map[string]any) (string, error) {
	return jwt.Signed(k.signer).Claims(claims).Serialize()
}

// newUUID returns a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // cannot fail: crypto/rand would end the program
	return formatUUID(b, 4)
}

// nameUUID returns a UUID that depends only on kind and name.
func nameUUID(kind, name string) string {
	sum := sha256.Sum256([]byte(kind + "\x00" + name))
	return formatUUID([16]byte(sum[:16]), 8)
}

func formatUUID(b [16]byte, version byte) string {
	b[6] = b[6]&0x0f | version<<4
	b[8] = b[8]&0x3f | 0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
