package diagnose

import (
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
	// subjectPrefix begins the subject of every Kubernetes service account.
	subjectPrefix = "system:serviceaccount:"

	// expiresSoon is when a token should long have been renewed: the kubelet does
	// so after 80 % of its life, which is 10 minutes at the least.
	expiresSoon = 90 * time.Second
)

// federatedToken looks at the file and its claims. The token itself stays in
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
		f.Status, f.Text = Fail, "the token names none"
		f.Remedy = "AZURE_FEDERATED_TOKEN_FILE must name a service-account token of the cluster"
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
		f.Remedy = "see that AZURE_FEDERATED_TOKEN_FILE names a service-account token of the cluster"
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
		f.Remedy = "see that the credential does (--audiences), or " + f.Remedy
		return f
	}
	f.Status = Fail
	f.Text = fmt.Sprintf("%q, where Entra expects %s", f.Text, azure.Audience)
	f.Remedy += "; the token at /var/run/secrets/kubernetes.io/serviceaccount is for the API server, not for Entra"
	return f
}

// forAPIServer recognises an audience of the API server: the name of its service, or
// of a server of AKS. Elsewhere it is the issuer, unless --api-audiences says more.
// Such a token must not leave the cluster: whoever has it is the service account.
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

// rough is a duration as a person would say it.
func rough(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
}

func (w *walk) tokenUsable() bool {
	return w.token != nil && !w.token.Expired(w.cfg.Now())
}

func skipped(item, why string) []Finding {
	return []Finding{{Status: Skipped, Item: item, Text: why}}
}
