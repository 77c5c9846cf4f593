package exchange

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"slices"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// Names are the identifiers of the identity that an access token was issued to, as its claims
// have them. Nothing verifies the claims here: they serve to find out which of several tokens
// belongs to an identifier, and must not be used for anything else.
type Names struct {
	// ObjectID is the claim oid. Empty: the token has none, or it is not a GUID.
	ObjectID azure.Selector
	// ResourceID is the claim xms_mirid, which tokens of managed identities may have. Empty:
	// the token has none, or it is not the resource ID of a user-assigned identity.
	ResourceID azure.Selector
}

// Has reports whether selector is one of the names.
func (n Names) Has(selector azure.Selector) bool {
	return selector != "" && (n.ObjectID == selector || n.ResourceID == selector)
}

// Contradicts reports whether the names have another value for the claim that selector is a
// value of.
func (n Names) Contradicts(selector azure.Selector) bool {
	claim := n.ObjectID
	if selector.IsResourceID() {
		claim = n.ResourceID
	}
	return claim != "" && claim != selector
}

// Names returns the identifiers in the token's payload. The result is zero if the token is
// opaque or encrypted, or has a claim twice: such a token says nothing about its identity.
func (t Token) Names() Names {
	parts := strings.Split(t.AccessToken, ".")
	if len(parts) != 3 {
		return Names{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return Names{}
	}
	found, ok := readClaims(payload, "oid", "xms_mirid")
	if !ok {
		return Names{}
	}
	var n Names
	n.ObjectID, _ = azure.ParseObjectID(found["oid"])
	n.ResourceID, _ = azure.ParseResourceID(found["xms_mirid"])
	return n
}

// readClaims returns the values of claims. ok is false if payload is not one JSON object, or
// has one of the claims twice or not as a string. It compares the names of claims byte for
// byte, whereas encoding/json accepts OID as oid.
func readClaims(payload []byte, names ...string) (found map[string]string, ok bool) {
	found = make(map[string]string, len(names))
	d := json.NewDecoder(bytes.NewReader(payload))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, false
	}
	for d.More() {
		name, err := d.Token()
		var value json.RawMessage
		if err != nil || d.Decode(&value) != nil {
			return nil, false
		}
		claim, _ := name.(string)
		if !slices.Contains(names, claim) {
			continue
		}
		var text string
		if _, twice := found[claim]; twice || json.Unmarshal(value, &text) != nil {
			return nil, false
		}
		found[claim] = text
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return nil, false
	}
	_, err := d.Token()
	return found, err == io.EOF
}
