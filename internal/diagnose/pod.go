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
	// webhook says what normally sets the variables.
	webhook = "azure-workload-identity's webhook does this on pods labelled azure.workload.identity/use: \"true\""

	// environmentFailed is the reason for which later steps are skipped.
	environmentFailed = "the environment is not valid"

	// subjectPrefix is the start of the subject of every Kubernetes service account.
	subjectPrefix = "system:serviceaccount:"

	// expiresSoon is the remaining life at which a token should already have been renewed:
	// the kubelet renews it after 80 % of its life, which is at least 10 minutes.
	expiresSoon = 90 * time.Second
)

// environment checks the environment variables, and the configuration as a whole.
func (r *run) environment(context.Context) []Finding {
	e := r.cfg.Exchange
	findings := []Finding{
		r.required(azure.EnvTenantID, string(e.TenantID), "set it; "+webhook),
		r.required(azure.EnvFederatedTokenFile, e.FederatedTokenFile, "set it and mount the file; "+webhook),
		r.defaultClientID(),
		r.authorityHost(),
	}
	if r.cfg.ClientID != "" {
		findings = append(findings, Finding{Status: OK, Item: "--client-id", Text: string(r.cfg.ClientID)})
	}
	switch err := r.cfg.Invalid[azure.EnvTokenProxy]; {
	case err != nil:
		findings = append(findings, invalid(azure.EnvTokenProxy, err))
	case e.Binding.TokenProxy != "":
		findings = append(findings, Finding{Status: Note, Item: azure.EnvTokenProxy,
			Text: "identity binding: token requests go to " + address(string(e.Binding.TokenProxy)) + " instead of the authority"})
	}
	if r.cfg.InstanceFile != "" && r.cfg.Refused == nil {
		findings = append(findings, Finding{Status: OK, Item: "--instance-metadata", Text: r.cfg.InstanceFile + ": the answer to requests for /metadata/instance"})
	}
	// An invalid variable already has its own finding.
	if r.cfg.Refused != nil && !slices.ContainsFunc(findings, func(f Finding) bool { return f.Status == Fail }) {
		findings = append(findings, configuration(r.cfg.Refused))
	}
	if e.TenantID == "" || e.FederatedTokenFile == "" || len(r.cfg.Invalid) > 0 {
		return findings
	}
	exchanger, err := exchange.New(e)
	if err != nil {
		return append(findings, configuration(err))
	}
	r.exchanger = exchanger
	return findings
}

func configuration(err error) Finding {
	return Finding{Status: Fail, Item: "configuration", Text: err.Error(),
		Remedy: "fix this setting: the proxy does not start with it"}
}

// invalid returns the finding for a variable whose value the proxy does not accept.
func invalid(variable string, err error) Finding {
	return Finding{Status: Fail, Item: variable, Text: err.Error(), Remedy: "fix this variable: the proxy does not start with it"}
}

func (r *run) required(variable, value, remedy string) Finding {
	if err := r.cfg.Invalid[variable]; err != nil {
		return invalid(variable, err)
	}
	if value == "" {
		return Finding{Status: Fail, Item: variable, Text: "not set", Remedy: remedy}
	}
	return Finding{Status: OK, Item: variable, Text: value}
}

// clientID returns the identity for the token request.
func (r *run) clientID() azure.ClientID {
	return cmp.Or(r.cfg.ClientID, r.cfg.DefaultClientID)
}

// defaultClientID checks AZURE_CLIENT_ID, even if the check requests a token for another
// identity: the proxy uses it, and most applications depend on it.
func (r *run) defaultClientID() Finding {
	id := r.cfg.DefaultClientID
	f := Finding{Status: OK, Item: azure.EnvClientID, Text: string(id)}
	switch err := r.cfg.Invalid[azure.EnvClientID]; {
	case err != nil:
		f = invalid(azure.EnvClientID, err)
		f.Remedy = "find the client ID: az identity show --name NAME --resource-group GROUP --query clientId"
	case id == "":
		f.Status, f.Text = Note, "not set: requests that name no identity are refused, unless --identity and --allowed-client-ids have exactly one client ID"
		f.Remedy = "annotate the service account: kubectl annotate serviceaccount NAME azure.workload.identity/client-id=CLIENT_ID"
		if r.cfg.ClientID == "" {
			f.Remedy += "; or choose the identity to check: --client-id=CLIENT_ID"
		}
	}
	return f
}

func (r *run) authorityHost() Finding {
	host := cmp.Or(string(r.cfg.Exchange.AuthorityHost), "not set: the default is the public cloud, "+string(azure.PublicAuthorityHost))
	return r.required(azure.EnvAuthorityHost, host, "")
}

// federatedToken checks the token file and the token's claims. Package exchange does not
// return the token itself.
func (r *run) federatedToken(context.Context) []Finding {
	path := r.cfg.Exchange.FederatedTokenFile
	if path == "" {
		return skipped("file", azure.EnvFederatedTokenFile+" is not set")
	}
	token, err := exchange.ReadFederatedToken(path)
	if err != nil {
		return []Finding{{Status: Fail, Item: "file", Text: err.Error(), Remedy: fileRemedy(err)}}
	}
	r.token = &token
	return []Finding{
		{Status: OK, Item: "file", Text: path},
		r.tokenIssuer(token),
		subject(token),
		r.audiences(token),
		r.expiry(token),
	}
}

func fileRemedy(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Sprintf("set securityContext.fsGroup for the pod, or run this container as a user that can read the file (it runs as UID %d, GID %d)", os.Getuid(), os.Getgid())
	}
	return "mount a projected volume with serviceAccountToken {audience: " + azure.Audience + ", expirationSeconds: 3600} and set " +
		azure.EnvFederatedTokenFile + " to the path of its file; " + webhook
}

const useServiceAccountToken = "set " + azure.EnvFederatedTokenFile + " to the path of a service account token of this cluster"

func (r *run) tokenIssuer(token exchange.FederatedToken) Finding {
	f := Finding{Status: OK, Item: "issuer (iss)", Text: token.Issuer}
	switch {
	case token.Issuer == "":
		f.Status, f.Text = Fail, "the token has no issuer"
		f.Remedy = useServiceAccountToken
	case !strings.HasPrefix(token.Issuer, "https://") && !r.bound():
		f.Status, f.Text = Fail, token.Issuer+" is not an https URL: Entra cannot read its keys"
		f.Remedy = "set the API server's --service-account-issuer to an https URL that can be reached from the internet"
	}
	return f
}

func subject(token exchange.FederatedToken) Finding {
	f := Finding{Status: OK, Item: "subject (sub)", Text: token.Subject}
	if !strings.HasPrefix(token.Subject, subjectPrefix) {
		f.Status = Note
		f.Text = fmt.Sprintf("%q is not a Kubernetes service account", token.Subject)
		f.Remedy = useServiceAccountToken
	}
	return f
}

// bound reports whether token requests go to the token proxy of an identity binding.
func (r *run) bound() bool { return r.cfg.Exchange.Binding.TokenProxy != "" }

func (r *run) audiences(token exchange.FederatedToken) Finding {
	f := Finding{Status: OK, Item: "audience (aud)", Text: strings.Join(token.Audiences, " ")}
	forEntra := slices.ContainsFunc(token.Audiences, func(a string) bool { return strings.HasPrefix(a, azure.Audience) })
	switch {
	case r.bound() && forEntra:
		f.Status, f.Text = Note, f.Text+" is for Entra: the token proxy of AKS expects "+azure.BindingAudience
		f.Remedy = "set serviceAccountToken.audience: " + azure.BindingAudience + " in the projected volume, as AKS's webhook does in pods with the annotation azure.workload.identity/use-identity-binding"
		return f
	case r.bound() && f.Text != "", forEntra: // each token proxy has its own audience, which it checks
		return f
	case slices.Contains(token.Audiences, azure.BindingAudience):
		f.Status, f.Text = Note, f.Text+" is for an identity binding, but "+azure.EnvTokenProxy+" is not set: Entra accepts it only if the federated credential has the same audience"
		f.Remedy = "check that AKS's webhook runs, which sets the variable in new pods: kubectl --namespace kube-system get pods -l azure-workload-identity.io/system=true; or remove the annotation azure.workload.identity/use-identity-binding"
		return f
	}
	f.Remedy = "set serviceAccountToken.audience: " + azure.Audience + " in the projected volume"
	if f.Text != "" && !slices.ContainsFunc(token.Audiences, func(a string) bool { return forAPIServer(a) || a == token.Issuer }) {
		f.Status = Note
		f.Text = fmt.Sprintf("%q instead of %s: Entra accepts it only if the federated credential has the same audience", f.Text, azure.Audience)
		f.Remedy = "check the audience of the federated credential (--audiences), or " + f.Remedy
		return f
	}
	f.Status = Fail
	f.Text = fmt.Sprintf("%q, but Entra expects %s", f.Text, azure.Audience)
	f.Remedy += "; the token at /var/run/secrets/kubernetes.io/serviceaccount is for the API server, not for Entra"
	return f
}

// forAPIServer reports whether an audience is that of an API server: the name of its service,
// or of an API server of AKS. In other clusters the audience is the issuer, unless
// --api-audiences is set. A token for the API server must not leave the cluster, because
// anybody who has it can act as the service account.
func forAPIServer(audience string) bool {
	host := strings.TrimPrefix(audience, "https://")
	host, _, _ = strings.Cut(host, "/")
	host, _, _ = strings.Cut(host, ":")
	return host == "kubernetes" || strings.HasPrefix(host, "kubernetes.default") || strings.HasSuffix(host, ".azmk8s.io")
}

func (r *run) expiry(token exchange.FederatedToken) Finding {
	left := token.ExpiresOn.Sub(r.cfg.Now())
	when := token.ExpiresOn.UTC().Format(time.RFC3339)
	f := Finding{Status: OK, Item: "expiry (exp)", Text: fmt.Sprintf("%s, in %s", when, rough(left))}
	switch {
	case left <= 0:
		f.Status, f.Text = Fail, fmt.Sprintf("%s, %s ago: the kubelet has not renewed it", when, rough(-left))
	case left < expiresSoon:
		f.Status, f.Text = Note, fmt.Sprintf("%s, in %s: the kubelet should already have renewed it", when, rough(left))
	default:
		return f
	}
	f.Remedy = "mount the volume without subPath, which is never renewed; check the node's clock; see the kubelet's log"
	return f
}

func (r *run) tokenUsable() bool {
	return r.token != nil && !r.token.Expired(r.cfg.Now())
}

func skipped(item, why string) []Finding {
	return []Finding{{Status: Skipped, Item: item, Text: why}}
}
