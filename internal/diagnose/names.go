package diagnose

import (
	"fmt"
	"slices"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// names says by which names, other than its client ID, requests get this identity's token.
func (r *run) names(names exchange.Names) []Finding {
	if names.ObjectID == "" && names.ResourceID == "" {
		return []Finding{{Status: Note, Item: "object ID", Text: fmt.Sprintf(
			"the proxy cannot read it in a token for %q; requests that name the identity by object ID or resource ID need --identity, or a token for another resource", clip(string(r.cfg.Resource)))}}
	}
	var findings []Finding
	if names.ObjectID != "" {
		findings = append(findings, r.name("object ID", "object_id", names.ObjectID))
	}
	if names.ResourceID != "" {
		findings = append(findings, r.name("resource ID", "msi_res_id", names.ResourceID))
	}
	return append(findings, r.otherObjectIDs(names.ObjectID)...)
}

// name returns the finding for a name in the token.
func (r *run) name(item, parameter string, name azure.Selector) Finding {
	f := Finding{Status: OK, Item: item, Text: fmt.Sprintf("%s; requests with this %s get this identity's token", name, parameter)}
	if i := slices.IndexFunc(r.cfg.Identities, func(i azure.Identity) bool { return i.Selector == name }); i >= 0 {
		if mapped := r.cfg.Identities[i].ClientID; mapped != r.clientID() {
			f.Status, f.Text = Note, fmt.Sprintf("%s; requests with this %s get the token of %s, because --identity says so", name, parameter, mapped)
			f.Remedy = fmt.Sprintf("remove it from --identity (PROXY_IDENTITY), or map it to %s", r.clientID())
		}
		return f
	}
	if !slices.Contains(r.cfg.ClientIDs, r.clientID()) {
		f.Text = fmt.Sprintf("%s; requests with this %s are refused: %s is not configured", name, parameter, r.clientID())
		f.Remedy = "if applications need it, list the client ID in --allowed-client-ids (PROXY_ALLOWED_CLIENT_IDS)"
	}
	return f
}

// otherObjectIDs returns a finding for each object ID that --identity maps to this identity
// although its token has another one.
func (r *run) otherObjectIDs(objectID azure.Selector) []Finding {
	var findings []Finding
	for _, i := range r.cfg.Identities {
		if i.ClientID == r.clientID() && objectID != "" && !i.Selector.IsResourceID() && i.Selector != objectID {
			findings = append(findings, Finding{Status: Note, Item: "--identity",
				Text:   fmt.Sprintf("maps %s to this identity, whose token has another object ID", i.Selector),
				Remedy: "correct it in --identity (PROXY_IDENTITY): az ad sp show --id " + string(i.ClientID) + " --query id"})
		}
	}
	return findings
}
