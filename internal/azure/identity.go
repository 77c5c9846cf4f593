package azure

import "strings"

// ClientID is the application (client) ID of an identity: a GUID in lower case. Only
// [ParseClientID] and [ParseIdentity] convert a text that is not a constant.
type ClientID string

// Selector identifies a managed identity other than by its client ID: by its object ID (a
// GUID) or by its ARM resource ID, in lower case.
type Selector string

// IsResourceID reports whether the selector is an ARM resource ID, not an object ID.
func (s Selector) IsResourceID() bool { return strings.HasPrefix(string(s), "/") }

const (
	guidReason     = "must be a GUID"
	armReason      = "must be /subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME"
	clientIDReason = "must be a GUID: the application (client) ID, not a name or a resource ID"
	selectorReason = "must be an object ID (a GUID) or the ARM resource ID of a user-assigned identity, before =CLIENT_ID"
	pairReason     = "must be SELECTOR=CLIENT_ID"
)

// ParseClientID parses a client ID.
func ParseClientID(s string) (ClientID, error) {
	id, ok := ParseGUID(s)
	if !ok {
		return "", Invalid(s, clientIDReason)
	}
	return ClientID(id), nil
}

// ParseObjectID parses the object ID of an identity, which is a GUID.
func ParseObjectID(s string) (Selector, error) {
	id, ok := ParseGUID(s)
	if !ok {
		return "", Invalid(s, guidReason)
	}
	return Selector(id), nil
}

// ParseResourceID parses the ARM resource ID of a user-assigned managed identity.
func ParseResourceID(s string) (Selector, error) {
	id, ok := parseARM(s)
	if !ok {
		return "", Invalid(s, armReason)
	}
	return Selector(id), nil
}

// Identity maps a selector to the client ID whose token a request with that selector gets.
type Identity struct {
	Selector Selector
	ClientID ClientID
}

// ParseIdentity parses SELECTOR=CLIENT_ID.
func ParseIdentity(s string) (Identity, error) {
	at := strings.LastIndexByte(s, '=')
	if at < 0 {
		return Identity{}, Invalid(s, pairReason)
	}
	selector, ok := ParseGUID(s[:at])
	if !ok {
		selector, ok = parseARM(s[:at])
	}
	if !ok {
		return Identity{}, Invalid(s[:at], selectorReason)
	}
	clientID, err := ParseClientID(s[at+1:])
	return Identity{Selector(selector), clientID}, err
}

// Identities returns the client ID of each selector. It refuses a selector with two client
// IDs.
func Identities(list []Identity) (map[Selector]ClientID, error) {
	bySelector := make(map[Selector]ClientID, len(list))
	for _, i := range list {
		if other, taken := bySelector[i.Selector]; taken && other != i.ClientID {
			return nil, Invalid(string(i.Selector), "must have one client ID, and has "+string(other)+" and "+string(i.ClientID))
		}
		bySelector[i.Selector] = i.ClientID
	}
	return bySelector, nil
}

// ParseGUID returns a GUID in lower case. It accepts only the form with dashes, which Azure
// prints and clients send.
func ParseGUID(s string) (string, bool) {
	const form = "00000000-0000-0000-0000-000000000000"
	if len(s) != len(form) {
		return "", false
	}
	for i := range len(s) {
		if form[i] == '-' && s[i] != '-' || form[i] != '-' && !isHex(s[i]) {
			return "", false
		}
	}
	return lowerASCII(s), true
}

// maxResourceID is the maximum length of a resource ID. Azure allows a subscription's GUID, a
// resource group of 90 characters and an identity of 128, about 370 in all.
const maxResourceID = 512

func parseARM(s string) (string, bool) {
	if len(s) > maxResourceID {
		return "", false
	}
	lower := lowerASCII(s)
	segments := strings.Split(lower, "/")
	form := [...]string{"", "subscriptions", "*", "resourcegroups", "*",
		"providers", "microsoft.managedidentity", "userassignedidentities", "*"}
	if len(segments) != len(form) {
		return "", false
	}
	for i, want := range form {
		if segments[i] != want && (want != "*" || !isVisible(segments[i])) {
			return "", false
		}
	}
	return lower, true
}

// isVisible reports whether s is one or more visible ASCII characters without a comma, which
// separates the items of a list.
func isVisible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == ',' {
			return false
		}
	}
	return s != ""
}
