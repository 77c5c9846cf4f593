package imds

import (
	"errors"
	"fmt"
	"strings"
)

// ParseIdentity parses the SELECTOR=CLIENT_ID of an --identity flag and returns
// both in the spelling in which they are compared: lower case. SELECTOR is an
// object ID (a GUID) or the ARM resource ID of a user-assigned managed identity.
func ParseIdentity(s string) (selector, clientID string, err error) {
	at := strings.LastIndexByte(s, '=')
	if at < 0 {
		return "", "", fmt.Errorf("%q is not of the form SELECTOR=CLIENT_ID", s)
	}
	selector, clientID, err = canonicalIdentity(s[:at], s[at+1:])
	if err != nil {
		return "", "", fmt.Errorf("%q: %w", s, err)
	}
	return selector, clientID, nil
}

func canonicalIdentity(rawSelector, rawClientID string) (selector, clientID string, err error) {
	selector, ok := parseSelector(rawSelector)
	if !ok {
		return "", "", errors.New("selector is neither an object ID (a GUID) nor the ARM resource ID of a user-assigned identity")
	}
	clientID, ok = parseGUID(rawClientID)
	if !ok {
		return "", "", errors.New("client ID is not a GUID")
	}
	return selector, clientID, nil
}

func parseSelector(s string) (string, bool) {
	if guid, ok := parseGUID(s); ok {
		return guid, true
	}
	return parseARMID(s)
}

// parseGUID returns a GUID in lower case. It takes the dashed form alone, which
// is what Azure prints and clients send.
func parseGUID(s string) (string, bool) {
	const length = len("00000000-0000-0000-0000-000000000000")
	if len(s) != length {
		return "", false
	}
	for i := range length {
		switch c := lowerByte(s[i]); {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return "", false
			}
		case '0' <= c && c <= '9', 'a' <= c && c <= 'f':
		default:
			return "", false
		}
	}
	return lowerASCII(s), true
}

// maxARMIDLength bounds a resource ID: Azure allows a subscription's GUID, a
// resource group of 90 characters and an identity of 128, about 370 in all.
const maxARMIDLength = 512

// parseARMID returns, in lower case, the ARM resource ID of a user-assigned
// managed identity:
// /subscriptions/S/resourceGroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/N
func parseARMID(s string) (string, bool) {
	if len(s) > maxARMIDLength {
		return "", false
	}
	lower := lowerASCII(s)
	segments := strings.Split(lower, "/")
	shape := [...]string{"", "subscriptions", "*", "resourcegroups", "*",
		"providers", "microsoft.managedidentity", "userassignedidentities", "*"}
	if len(segments) != len(shape) {
		return "", false
	}
	for i, want := range shape {
		if want == "*" && printable(segments[i]) || want == segments[i] {
			continue
		}
		return "", false
	}
	return lower, true
}

// printable reports whether s is made of one or more visible ASCII characters.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != ""
}

// identities knows which client ID a request means. It is immutable.
type identities struct {
	// whenUnnamed is what a request that names no identity means. Empty: none.
	whenUnnamed string
	// several says that there is no such default because there are many to choose from.
	several bool
	// bySelector holds object IDs and resource IDs, in lower case.
	bySelector map[string]string
	// allowed limits the client IDs. Empty: any.
	allowed map[string]bool
}

func newIdentities(cfg Config) (identities, error) {
	ids := identities{bySelector: map[string]string{}, allowed: map[string]bool{}}
	known := map[string]bool{}
	for _, raw := range cfg.AllowedClientIDs {
		id, ok := parseGUID(raw)
		if !ok {
			return identities{}, fmt.Errorf("--allowed-client-ids: %q is not a GUID", raw)
		}
		ids.allowed[id], known[id] = true, true
	}
	for rawSelector, rawClientID := range cfg.Identities {
		selector, id, err := canonicalIdentity(rawSelector, rawClientID)
		if err != nil {
			return identities{}, fmt.Errorf("--identity %s=%s: %w", rawSelector, rawClientID, err)
		}
		if other, taken := ids.bySelector[selector]; taken && other != id {
			return identities{}, fmt.Errorf("--identity %s=%s: the selector also stands for client ID %q", rawSelector, rawClientID, other)
		}
		if !ids.permits(id) {
			return identities{}, fmt.Errorf("--identity %s=%s: the client ID is not among --allowed-client-ids", rawSelector, rawClientID)
		}
		ids.bySelector[selector], known[id] = id, true
	}
	return ids.withDefault(cfg.DefaultClientID, known)
}

// withDefault settles what a request without a selector means: the configured
// default, else the only identity known, as on a virtual machine that has one.
func (ids identities) withDefault(raw string, known map[string]bool) (identities, error) {
	if raw != "" {
		id, ok := parseGUID(raw)
		if !ok {
			return identities{}, fmt.Errorf("AZURE_CLIENT_ID %q is not a GUID", raw)
		}
		if !ids.permits(id) {
			return identities{}, fmt.Errorf("AZURE_CLIENT_ID %q is not among --allowed-client-ids", raw)
		}
		ids.whenUnnamed = id
		return ids, nil
	}
	if ids.several = len(known) > 1; ids.several {
		return ids, nil
	}
	for id := range known {
		ids.whenUnnamed = id
	}
	return ids, nil
}

func (ids *identities) permits(clientID string) bool {
	return len(ids.allowed) == 0 || ids.allowed[clientID]
}

// clientID returns the client ID that a request means. A selector that matches
// nothing is an error and never falls back to the default: the caller would get
// another identity's token without knowing.
func (ids *identities) clientID(s selector) (string, error) {
	switch s.kind {
	case byNothing:
		return ids.unnamed()
	case byClientID:
		return ids.named(s.value)
	case byObjectID:
		id, ok := parseGUID(s.value)
		return ids.mapped(id, ok, "object_id")
	default:
		id, ok := parseARMID(s.value)
		return ids.mapped(id, ok, "resource ID")
	}
}

func (ids *identities) named(clientID string) (string, error) {
	id, ok := parseGUID(clientID)
	if !ok {
		return "", refused(errIdentityNotFound, "client_id is not a GUID")
	}
	if !ids.permits(id) {
		return "", refused(errIdentityNotFound, "client_id is not among those allowed")
	}
	return id, nil
}

func (ids *identities) mapped(selector string, valid bool, what string) (string, error) {
	if !valid {
		return "", refused(errIdentityNotFound, what+" is malformed")
	}
	id, ok := ids.bySelector[selector]
	if !ok {
		return "", refused(errIdentityNotFound, what+" is not configured; see --identity")
	}
	return id, nil
}

func (ids *identities) unnamed() (string, error) {
	switch {
	case ids.whenUnnamed != "":
		return ids.whenUnnamed, nil
	case ids.several:
		return "", errIdentityAmbiguous
	default:
		return "", refused(errIdentityNotFound, "the request names no identity and there is no default; set AZURE_CLIENT_ID")
	}
}
