package diagnose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

const (
	// injected says where the variables normally come from.
	injected = "azure-workload-identity's webhook sets it on pods labelled azure.workload.identity/use: \"true\""

	// subjectPrefix begins the subject of every Kubernetes service account.
	subjectPrefix = "system:serviceaccount:"

	// expiresSoon is when a token should have been renewed long before: the kubelet
	// renews it after 80 % of its life, which is at least 10 minutes.
	expiresSoon = 90 * time.Second
)

// environment checks the variables, and the configuration as a whole.
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
	// A variable that is wrong has its own finding already.
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

// defaultClientID checks AZURE_CLIENT_ID, whichever identity the check asks a token for: the
// proxy starts with it, and most applications mean it.
func (w *walk) defaultClientID() Finding {
	id := w.cfg.DefaultClientID
	f := Finding{Status: OK, Item: azure.EnvClientID, Text: string(id)}
	switch err := w.cfg.Invalid[azure.EnvClientID]; {
	case err != nil:
		f = invalid(azure.EnvClientID, err)
		f.Remedy = "find the client ID: az identity show --name NAME --resource-group GROUP --query clientId"
	case id == "":
		f.Status, f.Text = Note, "not set: requests that name no identity are refused, unless --identity and --allowed-client-ids have only one"
		f.Remedy = "annotate the service account: kubectl annotate serviceaccount NAME azure.workload.identity/client-id=CLIENT_ID"
		if w.cfg.ClientID == "" {
			f.Remedy += "; or say which to check, --client-id=CLIENT_ID"
		}
	}
	return f
}

func (w *walk) authorityHost() Finding {
	host := cmp.Or(string(w.cfg.Exchange.AuthorityHost), "not set: the public cloud, "+string(azure.PublicAuthorityHost))
	return w.required(azure.EnvAuthorityHost, host, "")
}

// federatedToken checks the token file and the token's claims. The token itself stays in
// package exchange.
func (w *walk) federatedToken(context.Context) []Finding {
	path := w.cfg.Exchange.FederatedTokenFile
	if path == "" {
		return skipped("file", azure.EnvFederatedTokenFile+" is not set")
	}
	token, err := exchange.ReadFederatedToken(path)
	if err != nil {
		return []Finding{{Status: Fail, Item: "file", Text: err.Error(), Remedy: fileRemedy(err)}}
	}
	w.token = &token
	return []Finding{
		{Status: OK, Item: "file", Text: path},
		w.tokenIssuer(token),
		subject(token),
		w.audiences(token),
		w.expiry(token),
	}
}

func fileRemedy(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Sprintf("set securityContext.fsGroup for the pod, or run this container as a user who may read it (it runs as UID %d, GID %d)", os.Getuid(), os.Getgid())
	}
	return "mount a projected volume with serviceAccountToken {audience: " + azure.Audience + ", expirationSeconds: 3600} and name its file; " +
		"the webhook does so on pods labelled azure.workload.identity/use: \"true\""
}

func (w *walk) tokenIssuer(token exchange.FederatedToken) Finding {
	f := Finding{Status: OK, Item: "issuer (iss)", Text: token.Issuer}
	switch {
	case token.Issuer == "":
		f.Status, f.Text = Fail, "the token names no issuer"
		f.Remedy = azure.EnvFederatedTokenFile + " must name a service-account token of the cluster"
	case !strings.HasPrefix(token.Issuer, "https://"):
		f.Status, f.Text = Fail, token.Issuer+" is not https: Entra cannot read its keys"
		f.Remedy = "give the API server an https --service-account-issuer that the internet can reach"
	}
	return f
}

func subject(token exchange.FederatedToken) Finding {
	f := Finding{Status: OK, Item: "subject (sub)", Text: token.Subject}
	if !strings.HasPrefix(token.Subject, subjectPrefix) {
		f.Status = Note
		f.Text = fmt.Sprintf("%q is not a Kubernetes service account", token.Subject)
		f.Remedy = "make " + azure.EnvFederatedTokenFile + " name a service-account token of the cluster"
	}
	return f
}

func (w *walk) audiences(token exchange.FederatedToken) Finding {
	f := Finding{Status: OK, Item: "audience (aud)", Text: strings.Join(token.Audiences, " ")}
	if w.cfg.Exchange.Binding.TokenProxy != "" && f.Text != "" {
		return f // an identity binding has an audience of its own, which its proxy judges
	}
	if slices.ContainsFunc(token.Audiences, func(a string) bool { return strings.HasPrefix(a, azure.Audience) }) {
		return f
	}
	f.Remedy = "set serviceAccountToken.audience: " + azure.Audience + " in the projected volume"
	if f.Text != "" && !slices.ContainsFunc(token.Audiences, func(a string) bool { return forAPIServer(a) || a == token.Issuer }) {
		f.Status = Note
		f.Text = fmt.Sprintf("%q, not %s: Entra takes it where the federated credential names the same", f.Text, azure.Audience)
		f.Remedy = "check that the credential does (--audiences), or " + f.Remedy
		return f
	}
	f.Status = Fail
	f.Text = fmt.Sprintf("%q, where Entra expects %s", f.Text, azure.Audience)
	f.Remedy += "; the token at /var/run/secrets/kubernetes.io/serviceaccount is for the API server, not for Entra"
	return f
}

// forAPIServer reports whether an audience is the API server's: the name of its service, or
// of a server of AKS. Elsewhere it is the issuer, unless --api-audiences says more.
// Such a token must not leave the cluster: its holder can act as the service account.
func forAPIServer(audience string) bool {
	host := strings.TrimPrefix(audience, "https://")
	host, _, _ = strings.Cut(host, "/")
	host, _, _ = strings.Cut(host, ":")
	return host == "kubernetes" || strings.HasPrefix(host, "kubernetes.default") || strings.HasSuffix(host, ".azmk8s.io")
}

func (w *walk) expiry(token exchange.FederatedToken) Finding {
	left := token.ExpiresOn.Sub(w.cfg.Now())
	when := token.ExpiresOn.UTC().Format(time.RFC3339)
	f := Finding{Status: OK, Item: "expiry (exp)", Text: fmt.Sprintf("%s, in %s", when, rough(left))}
	switch {
	case left <= 0:
		f.Status, f.Text = Fail, fmt.Sprintf("%s, %s ago: the kubelet has not renewed it", when, rough(-left))
	case left < expiresSoon:
		f.Status, f.Text = Note, fmt.Sprintf("%s, in %s: the kubelet should have renewed it", when, rough(left))
	default:
		return f
	}
	f.Remedy = "mount the volume itself, not a file of it by subPath, which is never renewed; compare the node's clock; see the kubelet's log"
	return f
}

func (w *walk) tokenUsable() bool {
	return w.token != nil && !w.token.Expired(w.cfg.Now())
}

func skipped(item, why string) []Finding {
	return []Finding{{Status: Skipped, Item: item, Text: why}}
}
