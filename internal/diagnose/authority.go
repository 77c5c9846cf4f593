package diagnose

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// authority looks at the way to Entra: name, connection, certificate, tenant.
func (w *walk) authority(ctx context.Context) []Finding {
	if w.exchanger == nil {
		return skipped("discovery", "the environment has to be in order first")
	}
	var findings []Finding
	if via := w.proxyInForce(); via != "" {
		findings = append(findings, Finding{Status: Note, Item: "HTTPS_PROXY", Text: "requests go through " + via + " (NO_PROXY excepts hosts)"})
	}
	began := time.Now()
	err := w.exchanger.Discover(ctx)
	if err == nil {
		w.reached = true
		return append(findings, Finding{Status: OK, Item: "discovery",
			Text: fmt.Sprintf("%s answered in %s; its certificate is trusted, and it knows the tenant", w.authorityName(), rough(time.Since(began)))})
	}
	failed, _ := errors.AsType[*exchange.Error](err)
	finding := failure("discovery", failed)
	switch {
	case errors.Is(failed, exchange.ErrMisfit) && w.cfg.Exchange.Binding.TokenProxy == "":
		return append(append(findings, finding), w.misfit(ctx)...)
	case failed.Code != 0, failed.Hint != "":
		return append(findings, finding)
	case w.cfg.Exchange.Binding.TokenProxy != "":
		finding.Text += ", by way of " + w.authorityName()
		finding.Remedy = "check AZURE_KUBERNETES_TOKEN_PROXY, _SNI_NAME, and _CA_FILE or _CA_DATA, and whether the pod may reach it"
		if w.proxyInForce() != "" {
			finding.Remedy += ", by way of HTTPS_PROXY; NO_PROXY excepts it"
		}
		return append(findings, finding)
	}
	cause, found := w.connectionCause(ctx)
	finding.Remedy = cause
	return append(append(findings, finding), found...)
}

// failure is an error of package exchange as a finding.
func failure(item string, e *exchange.Error) Finding {
	return Finding{Status: Fail, Item: item, Text: e.Error(), Remedy: e.Hint,
		AADSTS: e.Code, TraceID: e.TraceID, CorrelationID: e.CorrelationID}
}

// authorityURL is the tenant's OpenID configuration.
func (w *walk) authorityURL() string {
	host := cmp.Or(w.cfg.Exchange.AuthorityHost, azure.PublicAuthorityHost)
	return string(host) + string(w.cfg.Exchange.TenantID) + "/v2.0/.well-known/openid-configuration"
}

// destination is what is connected to.
func (w *walk) destination() string {
	return cmp.Or(string(w.cfg.Exchange.Binding.TokenProxy), w.authorityURL())
}

// authorityName is the host that was asked, for people.
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

// connectionCause asks once more, in a way whose errors have types, to say what
// mends it and which certificate was offered.
func (w *walk) connectionCause(ctx context.Context) (remedy string, found []Finding) {
	_, err := w.readAuthority(ctx)
	if offered, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && len(offered.UnverifiedCertificates) > 0 {
		found = append(found, certificate(offered.UnverifiedCertificates[0]))
	}
	return w.connectionRemedy(err), found
}

// authorityDocument is what decides whether the tenant's OpenID configuration fits.
type authorityDocument struct {
	Issuer                string `json:"issuer"`
	AuthorizationEndpoint string `json:"authorization_endpoint"`
	TokenEndpoint         string `json:"token_endpoint"`
}

func (w *walk) readAuthority(ctx context.Context) (authorityDocument, error) {
	var document authorityDocument
	client, err := exchange.NewHTTPClient(w.cfg.Exchange)
	if err != nil {
		return document, err
	}
	defer client.CloseIdleConnections()
	err = getJSON(ctx, client, w.authorityURL(), &document)
	return document, err
}

// misfit quotes what is amiss in a document that can be read and does not fit.
func (w *walk) misfit(ctx context.Context) []Finding {
	document, err := w.readAuthority(ctx)
	if err != nil {
		return nil // it was read a moment ago: there is nothing to quote any more
	}
	says := fmt.Sprintf("names the issuer %q", clip(document.Issuer))
	if document.Issuer == "" {
		says = "names no issuer"
	}
	if document.AuthorizationEndpoint == "" {
		says += ", no authorization_endpoint"
	}
	if document.TokenEndpoint == "" {
		says += ", no token_endpoint"
	}
	return []Finding{{Status: Note, Item: "document", Text: says + ": " + address(w.authorityURL())}}
}

func certificate(c *x509.Certificate) Finding {
	return Finding{Status: Note, Item: "certificate", Text: fmt.Sprintf("offered is %q, signed by %q, good from %s to %s",
		clip(c.Subject.String()), clip(c.Issuer.String()), c.NotBefore.UTC().Format(time.DateOnly), c.NotAfter.UTC().Format(time.DateOnly))}
}

func (w *walk) connectionRemedy(err error) string {
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
	)
	switch {
	case err == nil:
		return "it works now: run the check again"
	case errors.As(err, &authority):
		return "name the authority that signed it: --ca-file=FILE (PROXY_CA_FILE); a firewall that inspects TLS has one of its own"
	case errors.As(err, &hostname):
		return "check AZURE_AUTHORITY_HOST: who answers there has the certificate of another host"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "compare this node's clock, " + w.cfg.Now().UTC().Format(time.RFC3339) + ", with the certificate's dates"
	case w.proxyInForce() != "":
		return "check HTTPS_PROXY and NO_PROXY: that proxy has to let CONNECT " + w.authorityName() + " through"
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "check the port in AZURE_AUTHORITY_HOST: what listens there does not speak TLS"
	case isDNS(err):
		return "check AZURE_AUTHORITY_HOST, and the pod's DNS: nslookup " + w.authorityName()
	}
	return "let the pod out to " + w.authorityName() + " (NetworkPolicy, firewall), or set HTTPS_PROXY"
}
