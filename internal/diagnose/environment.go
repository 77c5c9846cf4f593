package diagnose

import (
	"cmp"
	"context"
	"net/url"
	"regexp"
	"slices"

	"imds-oidc-proxy/internal/exchange"
)

// injected says where the variables normally come from.
const injected = "azure-workload-identity's webhook sets it on pods labelled azure.workload.identity/use: \"true\""

// environment looks at the variables, and at the configuration as a whole.
func (w *walk) environment(context.Context) []Finding {
	e := w.cfg.Exchange
	findings := []Finding{
		needed("AZURE_TENANT_ID", e.TenantID, injected),
		needed("AZURE_FEDERATED_TOKEN_FILE", e.FederatedTokenFile, injected+", and mounts the file"),
		w.defaultClientID(),
		authorityHost(e.AuthorityHost),
	}
	if w.cfg.ClientID != "" {
		findings = append(findings, Finding{Status: OK, Item: "--client-id", Text: w.cfg.ClientID})
	}
	if e.Binding.TokenProxy != "" {
		findings = append(findings, Finding{Status: Note, Item: "AZURE_KUBERNETES_TOKEN_PROXY",
			Text: "identity binding: token requests go to " + address(e.Binding.TokenProxy) + ", not to the authority itself"})
	}
	// Of a client ID that is wrong there is a finding already.
	if w.cfg.Refused != nil && !slices.ContainsFunc(findings, func(f Finding) bool { return f.Status == Fail }) {
		findings = append(findings, configuration(w.cfg.Refused))
	}
	if e.TenantID == "" || e.FederatedTokenFile == "" {
		return findings
	}
	exchanger, err := exchange.New(e)
	if err != nil {
		return append(findings, configuration(err))
	}
	w.exchanger = exchanger
	return findings
}

func configuration(err error) Finding {
	return Finding{Status: Fail, Item: "configuration", Text: err.Error(),
		Remedy: "change what the text names; the proxy refuses to start with it"}
}

func needed(variable, value, origin string) Finding {
	if value == "" {
		return Finding{Status: Fail, Item: variable, Text: "not set", Remedy: origin}
	}
	return Finding{Status: OK, Item: variable, Text: value}
}

// clientIDPattern is a GUID, which is all that the proxy takes for one.
var clientIDPattern = regexp.MustCompile(`^(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// clientID is the identity to ask a token for.
func (w *walk) clientID() string { return cmp.Or(w.cfg.ClientID, w.cfg.DefaultClientID) }

// defaultClientID looks at AZURE_CLIENT_ID, whichever identity a token is asked for: it is
// what the proxy starts with, and what most applications mean.
func (w *walk) defaultClientID() Finding {
	id := w.cfg.DefaultClientID
	f := Finding{Status: OK, Item: "AZURE_CLIENT_ID", Text: id}
	switch {
	case id == "":
		f.Status, f.Text = Note, "not set: requests that name no identity are refused, unless --identity and --allowed-client-ids know one alone"
		f.Remedy = "annotate the service account: kubectl annotate serviceaccount NAME azure.workload.identity/client-id=CLIENT_ID"
		if w.cfg.ClientID == "" {
			f.Remedy += "; or say which to check, --client-id=CLIENT_ID"
		}
	case !clientIDPattern.MatchString(id):
		f.Status = Fail
		f.Text = "\"" + id + "\" is not a GUID"
		f.Remedy = "name the application (client) ID, not a name or a resource ID: az identity show --name NAME --resource-group GROUP --query clientId"
	}
	return f
}

func authorityHost(value string) Finding {
	if value == "" {
		return Finding{Status: OK, Item: "AZURE_AUTHORITY_HOST", Text: "not set: the public cloud, " + exchange.DefaultAuthorityHost}
	}
	return Finding{Status: OK, Item: "AZURE_AUTHORITY_HOST", Text: address(value)}
}

// address is a URL without what may be secret in one.
func address(value string) string {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		return "(not a URL)"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
