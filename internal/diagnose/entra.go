package diagnose

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// authority checks whether the pod reaches Entra: DNS, connection, certificate, tenant.
func (r *run) authority(ctx context.Context) []Finding {
	if r.exchanger == nil {
		return skipped("discovery", environmentFailed)
	}
	var findings []Finding
	if via := r.httpProxy(); via != "" {
		findings = append(findings, Finding{Status: Note, Item: "HTTPS_PROXY", Text: "requests go through " + via + " (NO_PROXY excludes hosts)"})
	}
	began := time.Now()
	err := r.exchanger.Discover(ctx)
	if err == nil {
		r.reached = true
		return append(findings, Finding{Status: OK, Item: "discovery",
			Text: fmt.Sprintf("%s answered in %s; its certificate is trusted, and it knows the tenant", r.authorityName(), rough(time.Since(began)))})
	}
	failed, _ := errors.AsType[*exchange.Error](err)
	return append(findings, r.unreached(failed)...)
}

// unreached returns the findings for a failed discovery: how to fix it, and the certificate
// or the document that was not accepted.
func (r *run) unreached(e *exchange.Error) []Finding {
	f := failure("discovery", e)
	tokenProxy := r.bound()
	switch fault := e.Fault; {
	case fault != nil && fault.Document != nil && !tokenProxy:
		return []Finding{f, r.document(*fault.Document)}
	case e.Code != 0, e.Hint != "":
		// The error already says how to fix it.
	case tokenProxy:
		f.Text += ", through " + r.authorityName()
		f.Remedy = fmt.Sprintf("check %s, %s, and %s or %s, and whether the pod can reach %s", azure.EnvTokenProxy, azure.EnvSNIName, azure.EnvCAFile, azure.EnvCAData, r.authorityName())
		if r.httpProxy() != "" {
			f.Remedy += " through HTTPS_PROXY, or exclude it by NO_PROXY"
		}
	case fault != nil:
		f.Remedy = r.connectionRemedy(fault.Kind)
		if fault.Certificate != nil {
			return []Finding{f, certificate(fault.Certificate)}
		}
	}
	return []Finding{f}
}

// failure returns the finding for an error of package exchange.
func failure(item string, e *exchange.Error) Finding {
	return Finding{Status: Fail, Item: item, Text: e.Error(), Remedy: e.Hint,
		AADSTS: e.Code, TraceID: e.TraceID, CorrelationID: e.CorrelationID}
}

// connectionRemedy says how to fix a failed connection to Entra.
func (r *run) connectionRemedy(kind exchange.FaultKind) string {
	switch kind {
	case exchange.FaultAuthority:
		return "trust the certificate authority that signed it: --ca-file=FILE (PROXY_CA_FILE); a firewall that inspects TLS has its own"
	case exchange.FaultHostname:
		return "check " + azure.EnvAuthorityHost + ": the server there has the certificate of another host"
	case exchange.FaultExpired:
		return "compare this node's clock, " + r.cfg.Now().UTC().Format(time.RFC3339) + ", with the certificate's dates"
	}
	if r.httpProxy() != "" {
		return "check HTTPS_PROXY and NO_PROXY: the proxy must allow CONNECT to " + r.authorityName()
	}
	switch kind {
	case exchange.FaultNotTLS:
		return "check the port in " + azure.EnvAuthorityHost + ": the server there does not speak TLS"
	case exchange.FaultDNS:
		return "check " + azure.EnvAuthorityHost + ", and the pod's DNS: nslookup " + r.authorityName()
	}
	return "allow connections from the pod to " + r.authorityName() + " (NetworkPolicy, firewall), or set HTTPS_PROXY"
}

// document says what is wrong with a discovery document that does not match the authority.
func (r *run) document(d exchange.OpenIDConfiguration) Finding {
	text := fmt.Sprintf("has the issuer %q", clip(d.Issuer))
	if d.Issuer == "" {
		text = "has no issuer"
	}
	if d.AuthorizationEndpoint == "" {
		text += ", no authorization_endpoint"
	}
	switch {
	case d.TokenEndpoint == "":
		text += ", no token_endpoint"
	case !r.authorityInUse().Serves(d.TokenEndpoint):
		text += fmt.Sprintf(", the token_endpoint %q", clip(d.TokenEndpoint))
	}
	return Finding{Status: Note, Item: "document", Text: text + ": " + address(r.authorityURL())}
}

func certificate(c *x509.Certificate) Finding {
	return Finding{Status: Note, Item: "certificate", Text: fmt.Sprintf("the server's certificate is %q, signed by %q, valid from %s to %s",
		clip(c.Subject.String()), clip(c.Issuer.String()), c.NotBefore.UTC().Format(time.DateOnly), c.NotAfter.UTC().Format(time.DateOnly))}
}

// authorityURL returns the URL of the tenant's discovery document.
func (r *run) authorityURL() string {
	return string(r.authorityInUse()) + string(r.cfg.Exchange.TenantID) + "/v2.0/.well-known/openid-configuration"
}

func (r *run) authorityInUse() azure.AuthorityHost {
	return cmp.Or(r.cfg.Exchange.AuthorityHost, azure.PublicAuthorityHost)
}

// destination returns the URL that token requests are sent to.
func (r *run) destination() string {
	return cmp.Or(string(r.cfg.Exchange.Binding.TokenProxy), r.authorityURL())
}

// authorityName returns the host of the destination, for texts.
func (r *run) authorityName() string {
	u, err := url.Parse(r.destination())
	if err != nil {
		return "the authority"
	}
	return u.Host
}

// httpProxy returns the address of the HTTP proxy for token requests. Empty: there is none.
func (r *run) httpProxy() string {
	via, err := r.cfg.Exchange.ProxyFor(r.destination())
	if err != nil {
		return "an HTTPS_PROXY that is not a URL"
	}
	if via == nil {
		return ""
	}
	return address(via.String())
}

// exchange makes a token request as the proxy does.
func (r *run) exchange(ctx context.Context) []Finding {
	switch {
	case r.exchanger == nil:
		return skipped("token", environmentFailed)
	case !r.tokenUsable():
		return skipped("token", "the federated token cannot be used")
	case !r.reached:
		return skipped("token", "the authority cannot be used")
	case r.clientID() == "":
		return skipped("token", "there is no client ID for the token request: set --client-id=CLIENT_ID")
	}
	request := fmt.Sprintf("for %q as %s", clip(string(r.cfg.Resource)), r.clientID())
	service, err := tokens.New(tokens.Config{Exchanger: r.exchanger}) // retries as often as the proxy
	if err != nil {
		return skipped("token", err.Error())
	}
	result, err := service.Token(ctx, tokens.Request{ClientID: r.clientID(), Resource: r.cfg.Resource})
	if err == nil {
		token := Finding{Status: OK, Item: "token", Text: fmt.Sprintf("%s, valid until %s", request, result.Token.ExpiresOn.UTC().Format(time.RFC3339))}
		return append([]Finding{token}, r.names(result.Token.Names())...)
	}
	failed, _ := errors.AsType[*exchange.Error](err)
	return append([]Finding{failure("token", failed), {Status: Note, Item: "request", Text: request}}, r.details(failed)...)
}

// details returns findings that help to fix a failed exchange: the claims that Entra
// compares, and the IDs of the request in Entra's logs.
func (r *run) details(e *exchange.Error) []Finding {
	var findings []Finding
	switch e.Kind {
	case exchange.FederationMismatch, exchange.BindingMismatch:
		findings = r.mismatch(e)
	}
	if e.TraceID != "" {
		findings = append(findings, Finding{Status: Note, Item: "trace ID", Text: e.TraceID})
	}
	if e.CorrelationID != "" {
		findings = append(findings, Finding{Status: Note, Item: "correlation ID", Text: e.CorrelationID})
	}
	return findings
}

// mismatch returns what has to match: the claims of the federated token, and the credential or
// the identity binding.
func (r *run) mismatch(e *exchange.Error) []Finding {
	subject, audience := clip(r.token.Subject), clip(strings.Join(r.token.Audiences, " "))
	if r.bound() {
		return []Finding{
			{Status: Note, Item: "claims", Text: fmt.Sprintf("subject %q, audience %q: the token proxy reads these; Entra gets a token of AKS's own issuer", subject, audience)},
			{Status: Note, Item: "bindings", Text: "az aks identity-binding list --resource-group GROUP --cluster-name CLUSTER"},
		}
	}
	findings := []Finding{{Status: Note, Item: "claims", Text: fmt.Sprintf("issuer %q, subject %q, audience %q; a federated credential must have the same values, byte for byte",
		clip(r.token.Issuer), subject, audience)}}
	if e.Code != subjectCase {
		findings = append(findings, Finding{Status: Note, Item: "trailing slash", Text: trailingSlash(r.token.Issuer)})
	}
	return append(findings, Finding{Status: Note, Item: "credentials", Text: "az identity federated-credential list --identity-name IDENTITY --resource-group GROUP"})
}

// subjectCase is the AADSTS code for a credential whose subject differs in case from the token's.
// Its issuer matches.
const subjectCase = 7002138

func trailingSlash(issuer string) string {
	if strings.HasSuffix(issuer, "/") {
		return "the token's issuer ends in a slash, so the credential's issuer must end in a slash"
	}
	return "the token's issuer does not end in a slash, so the credential's issuer must not end in a slash"
}
