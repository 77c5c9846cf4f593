package imds

import (
	"fmt"
	"slices"

	"imds-oidc-proxy/internal/azure"
)

// identities finds the client ID for a request. It is immutable.
type identities struct {
	// byDefault is the client ID for requests that name no identity. Empty: such requests
	// are refused.
	byDefault azure.ClientID
	// ambiguous is true if byDefault is empty because there are several identities.
	ambiguous bool

	bySelector map[azure.Selector]azure.ClientID
	// configured are all client IDs in the configuration. Their tokens show which of them a
	// selector names that bySelector does not have.
	configured []azure.ClientID
	// allowed limits the client IDs. Empty: no limit.
	allowed []azure.ClientID
}

func newIdentities(cfg Config) (identities, error) {
	ids := identities{byDefault: cfg.DefaultClientID, bySelector: cfg.Identities, allowed: cfg.AllowedClientIDs}
	if id := cfg.DefaultClientID; id != "" && !ids.permits(id) {
		return identities{}, fmt.Errorf("%s %q: must be among --allowed-client-ids", azure.EnvClientID, id)
	}
	known := slices.Clone(cfg.AllowedClientIDs)
	for selector, id := range cfg.Identities {
		if !ids.permits(id) {
			return identities{}, fmt.Errorf("--identity \"%s=%s\": the client ID must be among --allowed-client-ids", selector, id)
		}
		known = append(known, id)
	}
	if ids.byDefault != "" {
		known = append(known, ids.byDefault)
	}
	slices.Sort(known)
	ids.configured = slices.Compact(known)
	// If there is only one identity, it is the default, as on a virtual machine.
	switch {
	case ids.byDefault != "" || len(ids.configured) == 0:
	case len(ids.configured) == 1:
		ids.byDefault = ids.configured[0]
	default:
		ids.ambiguous = true
	}
	return ids, nil
}

func (ids *identities) permits(id azure.ClientID) bool {
	return len(ids.allowed) == 0 || slices.Contains(ids.allowed, id)
}

// identity returns the identity for the selector of a request: its client ID or, if that is
// not configured, the selector itself, which package tokens finds in the tokens of the
// configured identities. A selector that matches no identity is an error and never falls
// back to the default: the caller would get another identity's token without noticing.
func (ids *identities) identity(s selector) (azure.ClientID, azure.Selector, error) {
	switch s.kind {
	case byNothing:
		id, err := ids.unnamed()
		return id, "", err
	case byClientID:
		id, err := ids.named(s.value)
		return id, "", err
	case byObjectID:
		objectID, err := azure.ParseObjectID(s.value)
		id, selector, err := ids.mapped(objectID, err, "object_id")
		// Microsoft's ODBC driver sends its UID as object_id, also if the UID is a client ID.
		// IMDS refuses that. No object ID is equal to a client ID, so it can mean no other.
		if clientID, _ := azure.ParseClientID(s.value); selector != "" && slices.Contains(ids.configured, clientID) {
			return clientID, "", nil
		}
		return id, selector, err
	default:
		id, err := azure.ParseResourceID(s.value)
		return ids.mapped(id, err, "resource ID")
	}
}

func (ids *identities) named(clientID string) (azure.ClientID, error) {
	id, err := azure.ParseClientID(clientID)
	if err != nil {
		return "", refused(errIdentityNotFound, "client_id is not a GUID")
	}
	if !ids.permits(id) {
		return "", refused(errIdentityNotFound, "client_id is not among those allowed")
	}
	return id, nil
}

func (ids *identities) mapped(selector azure.Selector, err error, what string) (azure.ClientID, azure.Selector, error) {
	if err != nil {
		return "", "", refused(errIdentityNotFound, what+" is malformed")
	}
	if id, ok := ids.bySelector[selector]; ok {
		return id, "", nil
	}
	if len(ids.configured) == 0 {
		return "", "", refused(errIdentityNotFound, what+" is not configured; see --identity")
	}
	return "", selector, nil
}

// named returns the identity that the selector names, for the log, or "" if the selector is malformed:
// it may then be any text.
func (s selector) named() string {
	switch s.kind {
	case byNothing:
		return ""
	case byClientID:
		id, _ := azure.ParseClientID(s.value)
		return string(id)
	case byObjectID:
		id, _ := azure.ParseObjectID(s.value)
		return string(id)
	default:
		id, _ := azure.ParseResourceID(s.value)
		return string(id)
	}
}

func (ids *identities) unnamed() (azure.ClientID, error) {
	switch {
	case ids.byDefault != "":
		return ids.byDefault, nil
	case ids.ambiguous:
		return "", errIdentityAmbiguous
	default:
		return "", refused(errIdentityNotFound, "the request names no identity and there is no default; set "+azure.EnvClientID)
	}
}
