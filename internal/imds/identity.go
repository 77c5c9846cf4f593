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
		return ids, nil
	}
	// If there is only one identity, it is the default, as on a virtual machine.
	slices.Sort(known)
	switch known = slices.Compact(known); len(known) {
	case 0:
	case 1:
		ids.byDefault = known[0]
	default:
		ids.ambiguous = true
	}
	return ids, nil
}

func (ids *identities) permits(id azure.ClientID) bool {
	return len(ids.allowed) == 0 || slices.Contains(ids.allowed, id)
}

// clientID returns the client ID for the selector of a request. A selector that matches no
// identity is an error and never falls back to the default: the caller would get another
// identity's token without noticing.
func (ids *identities) clientID(s selector) (azure.ClientID, error) {
	switch s.kind {
	case byNothing:
		return ids.unnamed()
	case byClientID:
		return ids.named(s.value)
	case byObjectID:
		id, err := azure.ParseObjectID(s.value)
		return ids.mapped(id, err, "object_id")
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

func (ids *identities) mapped(selector azure.Selector, err error, what string) (azure.ClientID, error) {
	if err != nil {
		return "", refused(errIdentityNotFound, what+" is malformed")
	}
	id, ok := ids.bySelector[selector]
	if !ok {
		return "", refused(errIdentityNotFound, what+" is not configured; see --identity")
	}
	return id, nil
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
