package exchange

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"

	"imds-oidc-proxy/internal/azure"
)

// maxFederatedToken bounds the file that is read as a federated token. The
// kubelet writes about 1.5 KiB.
const maxFederatedToken = 64 << 10

// FederatedToken is a service-account token that the kubelet projected. Its claims are for
// diagnosis: Entra verifies them, this package does not.
//
// Printing, logging or encoding it never shows the token itself.
type FederatedToken struct {
	// Issuer is the cluster's OIDC issuer, the iss claim.
	Issuer string
	// Subject is system:serviceaccount:NAMESPACE:NAME, the sub claim.
	Subject string
	// Audiences is the aud claim.
	Audiences []string
	// IssuedAt is the iat claim. Zero: there is none.
	IssuedAt time.Time
	// ExpiresOn is the exp claim.
	ExpiresOn time.Time
	// KeyID is the kid in the header: the issuer's key that signed the token. Empty: the
	// header has no kid.
	KeyID string

	// raw is the token. It is a pointer, because printing by reflection does not follow
	// pointers in structs.
	raw *string
}

// ReadFederatedToken reads the federated token at path. Its error says why the file is
// unusable. An expired token is no error: see [FederatedToken.Expired].
func ReadFederatedToken(path string) (FederatedToken, error) {
	content, err := readSwapped(path, maxFederatedToken)
	if err != nil {
		return FederatedToken{}, fmt.Errorf("federated token file %s %w", path, err)
	}
	token, err := parseFederatedToken(strings.TrimSpace(string(content)))
	if err != nil {
		return FederatedToken{}, fmt.Errorf("federated token file %s %w", path, err)
	}
	return token, nil
}

// claims are the claims that Entra compares with the federated credential, and the times.
type claims struct {
	Issuer    string   `json:"iss"`
	Subject   string   `json:"sub"`
	Audiences audience `json:"aud"`
	IssuedAt  float64  `json:"iat"`
	Expiry    float64  `json:"exp"`
}

// audience is a string or a list of them (RFC 7519, section 4.1.3).
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

// parseFederatedToken parses a token. Its errors do not quote the content: the file may be the
// wrong one, such as a private key.
func parseFederatedToken(raw string) (FederatedToken, error) {
	if raw == "" {
		return FederatedToken{}, errors.New("is empty")
	}
	notJWT := errors.New("does not contain a JSON web token")
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return FederatedToken{}, notJWT
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return FederatedToken{}, notJWT
	}
	var c claims
	if json.Unmarshal(payload, &c) != nil {
		return FederatedToken{}, notJWT
	}
	if c.Expiry <= 0 || c.Expiry > math.MaxInt32*2 {
		return FederatedToken{}, errors.New("contains a JSON web token without a usable exp claim")
	}
	var issued time.Time
	if c.IssuedAt > 0 && c.IssuedAt <= c.Expiry {
		issued = time.Unix(int64(c.IssuedAt), 0)
	}
	return FederatedToken{
		Issuer:    c.Issuer,
		Subject:   c.Subject,
		Audiences: c.Audiences,
		IssuedAt:  issued,
		ExpiresOn: time.Unix(int64(c.Expiry), 0),
		KeyID:     keyID(parts[0]),
		raw:       &raw,
	}, nil
}

// keyID returns the key ID in a token's header, empty if the header cannot be parsed. Such a
// token is left for Entra to refuse.
func keyID(header string) string {
	decoded, err := base64.RawURLEncoding.DecodeString(header)
	if err != nil {
		return ""
	}
	var h struct {
		KeyID string `json:"kid"`
	}
	if json.Unmarshal(decoded, &h) != nil {
		return ""
	}
	return h.KeyID
}

// Expired reports whether the token expired at the given time.
func (t FederatedToken) Expired(now time.Time) bool { return !now.Before(t.ExpiresOn) }

// usable returns an error if Entra would refuse the token because it has expired.
func (t FederatedToken) usable(now time.Time) error {
	if t.Expired(now) {
		return fmt.Errorf("expired at %s: the kubelet has not renewed it", t.ExpiresOn.UTC().Format(time.RFC3339))
	}
	return nil
}

// FederatedToken reads the federated token file, within a second. If a read hangs in a file
// system, all callers share it, so that only one goroutine hangs. An expired token is no error.
func (e *Exchanger) FederatedToken() (FederatedToken, error) {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	return e.tokenFile.read(ctx)
}

// Ready returns an error if exchanges cannot work because the federated token is unreadable or
// has expired. It sends nothing to Entra.
func (e *Exchanger) Ready() error {
	token, err := e.FederatedToken()
	if err == nil {
		err = token.usable(time.Now())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", azure.EnvFederatedTokenFile, err)
	}
	return nil
}

// boundedClaims returns the claims for the log, shortened and without the token. Package tokens
// keeps failures in memory, which must not contain the token.
func (t FederatedToken) boundedClaims() *FederatedToken {
	return &FederatedToken{
		Issuer:    bounded(t.Issuer),
		Subject:   bounded(t.Subject),
		Audiences: boundedAll(t.Audiences),
		ExpiresOn: t.ExpiresOn,
	}
}

// String describes the token by its claims, bounded and in printable ASCII.
func (t FederatedToken) String() string {
	return fmt.Sprintf("federated token of %q from %q for %q until %s",
		bounded(t.Subject), bounded(t.Issuer), boundedAll(t.Audiences), t.ExpiresOn.UTC().Format(time.RFC3339))
}

// Format prints String for every verb.
func (t FederatedToken) Format(f fmt.State, _ rune) { io.WriteString(f, t.String()) }

// MarshalLogObject logs the claims, bounded and in printable ASCII.
func (t FederatedToken) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("iss", bounded(t.Issuer))
	enc.AddString("sub", bounded(t.Subject))
	enc.AddString("aud", strings.Join(boundedAll(t.Audiences), " "))
	enc.AddString("exp", t.ExpiresOn.UTC().Format(time.RFC3339))
	return nil
}
