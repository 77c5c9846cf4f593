package diagnose

import (
	"cmp"
	"context"
	"net/url"
	"slices"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// injected says where the variables normally come from.
const injected = "azure-workload-identity's webhook sets it on pods labelled azure.workload.identity/use: \"true\""

// environment looks at the variables, and at the configuration as a whole.
func (w *walk) environment(context.Context) []Finding {
	e := w.cfg.Exchange
	findings := []Finding{
		w.required(azure.EnvTenantID, string(e.TenantID), injected),
		w.required(azure.EnvFederatedTokenFile, e.FederatedTokenFile, injected+", and mounts the file"),
		w.defaultClientID(),
		w.authorityHost(),
	}
	if w.cfg.ClientID != "" {
		findings = append(findings, Finding{Status: OK, Item: "--client-id", Text: string(w.cfg.ClientID)})
	}
	switch err := w.cfg.Invalid[azure.EnvTokenProxy]; {
	case err != nil:
		findings = append(findings, invalid(azure.EnvTokenProxy, err))
	case e.Binding.TokenProxy != "":
		findings = append(findings, Finding{Status: Note, Item: azure.EnvTokenProxy,
			Text: "identity binding: token requests go to " + address(string(e.Binding.TokenProxy)) + ", not to the authority itself"})
	}
	// Of a client ID that is wrong there is a finding already.
	if w.cfg.Refused != nil && !slices.ContainsFunc(findings, func(f Finding) bool { return f.Status == Fail }) {
		findings = append(findings, configuration(w.cfg.Refused))
	}
	if e.TenantID == "" || e.FederatedTokenFile == "" || len(w.cfg.Invalid) > 0 {
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

// invalid is a variable that is set to what the proxy refuses.
func invalid(variable string, err error) Finding {
	return Finding{Status: Fail, Item: variable, Text: err.Error(), Remedy: "change the variable; the proxy refuses to start with it"}
}

func (w *walk) required(variable, value, origin string) Finding {
	if err := w.cfg.Invalid[variable]; err != nil {
		return invalid(variable, err)
	}
	if value == "" {
		return Finding{Status: Fail, Item: variable, Text: "not set", Remedy: origin}
	}
	return Finding{Status: OK, Item: variable, Text: value}
}

// clientID is the identity to ask a token for.
func (w *walk) clientID() azure.ClientID {
	return cmp.Or(w.cfg.ClientID, w.cfg.DefaultClientID)
}

// defaultClientID looks at AZURE_CLIENT_ID, whichever identity a token is asked for: it is
// what the proxy starts with, and what most applications mean.
func (w *walk) defaultClientID() Finding {
	id := w.cfg.DefaultClientID
	f := Finding{Status: OK, Item: azure.EnvClientID, Text: string(id)}
	switch err := w.cfg.Invalid[azure.EnvClientID]; {
	case err != nil:
		f = invalid(azure.EnvClientID, err)
		f.Remedy = "find the client ID: az identity show --name NAME --resource-group GROUP --query clientId"
	case id == "":
		f.Status, f.Text = Note, "not set: requests that name no identity are refused, unless --identity and --allowed-client-ids know one alone"
		f.Remedy = "annotate the service account: kubectl annotate serviceaccount NAME azure.workload.identity/client-id=CLIENT_ID"
		if w.cfg.ClientID == "" {
			f.Remedy += "; or say which to check, --client-id=CLIENT_ID"
		}
	}
	return f
}

func (w *walk) authorityHost() Finding {
	if err := w.cfg.Invalid[azure.EnvAuthorityHost]; err != nil {
		return invalid(azure.EnvAuthorityHost, err)
	}
	if host := w.cfg.Exchange.AuthorityHost; host != "" {
		return Finding{Status: OK, Item: azure.EnvAuthorityHost, Text: string(host)}
	}
	return Finding{Status: OK, Item: azure.EnvAuthorityHost, Text: "not set: the public cloud, " + string(azure.PublicAuthorityHost)}
}

// address is a URL without what may be secret in one.
func address(value string) string {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		return "(not a URL)"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
