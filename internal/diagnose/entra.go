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

// authority checks the way to Entra: name, connection, certificate, tenant.
func (w *walk) authority(ctx context.Context) []Finding {
	if w.exchanger == nil {
		return skipped("discovery", "the environment has to be in order first")
	}
	var findings []Finding
	if via := w.proxyInForce(); via != "" {
		findings = append(findings, Finding{Status: Note, Item: "HTTPS_PROXY", Text: "requests go through " + via + " (NO_PROXY excludes hosts)"})
	}
	began := time.Now()
	err := w.exchanger.Discover(ctx)
	if err == nil {
		w.reached = true
		return append(findings, Finding{Status: OK, Item: "discovery",
			Text: fmt.Sprintf("%s answered in %s; its certificate is trusted, and it knows the tenant", w.authorityName(), rough(time.Since(began)))})
	}
	failed, _ := errors.AsType[*exchange.Error](err)
	return append(findings, w.unreached(failed)...)
}

// unreached says how to fix a failed discovery, and shows the certificate or the document
// that was not accepted.
func (w *walk) unreached(e *exchange.Error) []Finding {
	f := failure("discovery", e)
	tokenProxy := w.cfg.Exchange.Binding.TokenProxy != ""
	switch fault := e.Fault; {
	case fault != nil && fault.Document != nil && !tokenProxy:
		return []Finding{f, w.document(*fault.Document)}
	case e.Code != 0, e.Hint != "":
		// The error says by itself what to fix.
	case tokenProxy:
		f.Text += ", by way of " + w.authorityName()
		f.Remedy = fmt.Sprintf("check %s, %s, and %s or %s, and whether the pod may reach it", azure.EnvTokenProxy, azure.EnvSNIName, azure.EnvCAFile, azure.EnvCAData)
		if w.proxyInForce() != "" {
			f.Remedy += ", by way of HTTPS_PROXY; NO_PROXY excludes it"
		}
	case fault != nil:
		f.Remedy = w.connectionRemedy(fault.Kind)
		if fault.Certificate != nil {
			return []Finding{f, certificate(fault.Certificate)}
		}
	}
	return []Finding{f}
}

// failure is an error of package exchange as a finding.
func failure(item string, e *exchange.Error) Finding {
	return Finding{Status: Fail, Item: item, Text: e.Error(), Remedy: e.Hint,
		AADSTS: e.Code, TraceID: e.TraceID, CorrelationID: e.CorrelationID}
}

// connectionRemedy says how to fix a fault on the way to Entra.
func (w *walk) connectionRemedy(kind exchange.FaultKind) string {
	switch kind {
	case exchange.FaultAuthority:
		return "name the authority that signed it: --ca-file=FILE (PROXY_CA_FILE); a firewall that inspects TLS has one of its own"
	case exchange.FaultHostname:
		return "check " + azure.EnvAuthorityHost + ": the server there has the certificate of another host"
	case exchange.FaultExpired:
		return "compare this node's clock, " + w.cfg.Now().UTC().Format(time.RFC3339) + ", with the certificate's dates"
	}
	if w.proxyInForce() != "" {
		return "check HTTPS_PROXY and NO_PROXY: that proxy has to let CONNECT " + w.authorityName() + " through"
	}
	switch kind {
	case exchange.FaultNotTLS:
		return "check the port in " + azure.EnvAuthorityHost + ": the server there does not speak TLS"
	case exchange.FaultDNS:
		return "check " + azure.EnvAuthorityHost + ", and the pod's DNS: nslookup " + w.authorityName()
	}
	return "let the pod out to " + w.authorityName() + " (NetworkPolicy, firewall), or set HTTPS_PROXY"
}

// document quotes what is wrong with a discovery document that does not fit the authority.
func (w *walk) document(d exchange.OpenIDConfiguration) Finding {
	text := fmt.Sprintf("names the issuer %q", clip(d.Issuer))
	if d.Issuer == "" {
		text = "names no issuer"
	}
	if d.AuthorizationEndpoint == "" {
		text += ", no authorization_endpoint"
	}
	if d.TokenEndpoint == "" {
		text += ", no token_endpoint"
	}
	return Finding{Status: Note, Item: "document", Text: text + ": " + address(w.authorityURL())}
}

func certificate(c *x509.Certificate) Finding {
	return Finding{Status: Note, Item: "certificate", Text: fmt.Sprintf("the server's is %q, signed by %q, valid from %s to %s",
		clip(c.Subject.String()), clip(c.Issuer.String()), c.NotBefore.UTC().Format(time.DateOnly), c.NotAfter.UTC().Format(time.DateOnly))}
}

// authorityURL is the tenant's OpenID configuration.
func (w *walk) authorityURL() string {
	host := cmp.Or(w.cfg.Exchange.AuthorityHost, azure.PublicAuthorityHost)
	return string(host) + string(w.cfg.Exchange.TenantID) + "/v2.0/.well-known/openid-configuration"
}

// destination is the URL that token requests are sent to.
func (w *walk) destination() string {
	return cmp.Or(string(w.cfg.Exchange.Binding.TokenProxy), w.authorityURL())
}

// authorityName is the host of the destination, for people.
func (w *walk) authorityName() string {
	u, err := url.Parse(w.destination())
	if err != nil {
		return "the authority"
	}
	return u.Host
}

// proxyInForce is the HTTP proxy on the way there, empty for none.
func (w *walk) proxyInForce() string {
	via, err := w.cfg.Exchange.ProxyFor(w.destination())
	if err != nil {
		return "an HTTPS_PROXY that is not a URL"
	}
	if via == nil {
		return ""
	}
	return address(via.String())
}

// exchange makes a token request, as the proxy would.
func (w *walk) exchange(ctx context.Context) []Finding {
	switch {
	case w.exchanger == nil:
		return skipped("token", "the environment has to be in order first")
	case !w.tokenUsable():
		return skipped("token", "there is no federated token that Entra would take")
	case !w.reached:
		return skipped("token", "the authority has to be reached first")
	case w.clientID() == "":
		return skipped("token", "there is no client ID to ask a token for: --client-id=CLIENT_ID")
	}
	asked := fmt.Sprintf("for %q as %s", clip(string(w.cfg.Resource)), w.clientID())
	service, err := tokens.New(tokens.Config{Exchanger: w.exchanger}) // tries as often as the proxy
	if err != nil {
		return skipped("token", err.Error())
	}
	result, err := service.Token(ctx, tokens.Request{ClientID: w.clientID(), Resource: w.cfg.Resource})
	if err == nil {
		return []Finding{{Status: OK, Item: "token", Text: fmt.Sprintf("%s, until %s", asked, result.Token.ExpiresOn.UTC().Format(time.RFC3339))}}
	}
	failed, _ := errors.AsType[*exchange.Error](err)
	return append([]Finding{failure("token", failed), {Status: Note, Item: "asked", Text: asked}}, w.circumstances(failed)...)
}

// circumstances are what helps to fix a failed exchange: the claims that Entra compared,
// and the IDs by which Entra's own logs have the attempt.
func (w *walk) circumstances(e *exchange.Error) []Finding {
	var findings []Finding
	if e.Kind == exchange.FederationMismatch {
		findings = append(findings,
			Finding{Status: Note, Item: "compared", Text: fmt.Sprintf("byte for byte, with the credentials' own: issuer %q, subject %q, audience %q",
				clip(w.token.Issuer), clip(w.token.Subject), clip(strings.Join(w.token.Audiences, " ")))},
			Finding{Status: Note, Item: "trailing slash", Text: trailingSlash(w.token.Issuer)},
			Finding{Status: Note, Item: "credentials", Text: "az identity federated-credential list --identity-name IDENTITY --resource-group GROUP"})
	}
	if e.TraceID != "" {
		findings = append(findings, Finding{Status: Note, Item: "trace ID", Text: e.TraceID})
	}
	if e.CorrelationID != "" {
		findings = append(findings, Finding{Status: Note, Item: "correlation ID", Text: e.CorrelationID})
	}
	return findings
}

func trailingSlash(issuer string) string {
	if strings.HasSuffix(issuer, "/") {
		return "the token's issuer ends in a slash: so must the credential's"
	}
	return "the token's issuer does not end in a slash: nor may the credential's"
}
