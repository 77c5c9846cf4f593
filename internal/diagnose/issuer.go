package diagnose

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"imds-oidc-proxy/internal/exchange"
)

// documentTimeout bounds the request for one document of the issuer. If packets to the
// issuer are dropped, the check takes this much longer.
const documentTimeout = 5 * time.Second

// discoveryDocument has the fields that the check reads of an issuer's discovery document.
type discoveryDocument struct {
	Issuer  string `json:"issuer"`
	KeysURL string `json:"jwks_uri"`
}

// keySet has the fields that the check reads of an issuer's keys (RFC 7517).
type keySet struct {
	Keys []key `json:"keys"`
}

type key struct {
	ID string `json:"kid"`
}

// issuer reads the issuer's documents as Entra does, and checks that they match the token.
func (r *run) issuer(ctx context.Context) []Finding {
	if r.token == nil {
		return skipped("discovery", "there is no federated token")
	}
	if r.bound() {
		return skipped("discovery", "with an identity binding the token proxy verifies the federated token, and Entra does not read its issuer")
	}
	host, err := url.Parse(r.token.Issuer)
	if err != nil || host.Scheme != "https" || host.Host == "" {
		return skipped("discovery", "the issuer is not an https URL")
	}
	if clusterInternal(host.Hostname()) {
		return []Finding{{Status: Fail, Item: "discovery", Text: host.Hostname() + " is a name inside the cluster: Entra cannot reach it",
			Remedy: "enable the cluster's public issuer: az aks update --name CLUSTER --resource-group GROUP --enable-oidc-issuer; " +
				"outside AKS, set the API server's --service-account-issuer to a public URL"}}
	}
	client, err := exchange.NewHTTPClient(exchange.Config{
		CAFile: r.cfg.Exchange.CAFile,
		Proxy:  r.cfg.Exchange.Proxy,
		Dial:   (&net.Dialer{Timeout: documentTimeout, Control: refuseLinkLocal}).DialContext,
	})
	if err != nil {
		return skipped("discovery", err.Error())
	}
	defer client.CloseIdleConnections()
	return r.issuerDocuments(ctx, client)
}

// clusterInternal reports whether only the cluster's DNS resolves the name.
func clusterInternal(host string) bool {
	return strings.HasSuffix(host, ".svc") || strings.HasSuffix(host, ".cluster.local") || host == "kubernetes" || host == "kubernetes.default"
}

func (r *run) issuerDocuments(ctx context.Context, client *http.Client) []Finding {
	location := strings.TrimSuffix(r.token.Issuer, "/") + "/.well-known/openid-configuration"
	var document discoveryDocument
	if err := getJSON(ctx, client, location, &document); err != nil {
		return []Finding{
			unread("discovery", location, err),
			{Status: Skipped, Item: "key", Text: "the address of the keys is in the discovery document"},
		}
	}
	findings := []Finding{
		{Status: OK, Item: "discovery", Text: location},
		r.sameIssuer(document.Issuer),
	}
	var keys keySet
	if err := getJSON(ctx, client, document.KeysURL, &keys); err != nil {
		return append(findings, unread("keys", address(document.KeysURL), err))
	}
	return append(findings, Finding{Status: OK, Item: "keys", Text: address(document.KeysURL)}, r.tokenKey(keys))
}

func unread(item, location string, err error) Finding {
	return Finding{Status: Note, Item: item, Text: fmt.Sprintf("%s cannot be read from this pod (%s); this is no failure, because only Entra must be able to read it", location, whyUnread(err)),
		Remedy: "run on a machine outside the cluster: curl '" + withoutQuotes.Replace(printable(location)) + "'"}
}

// whyUnread returns a constant text that says why a document was not read.
func whyUnread(err error) string {
	switch status, ok := errors.AsType[statusError](err); {
	case ok:
		return status.Error()
	case errors.Is(err, errNotJSON):
		return errNotJSON.Error()
	case errors.Is(err, errLinkLocal):
		return "the check sends no requests to link-local addresses"
	}
	return exchange.FaultOf(err, "the issuer").Text
}

// sameIssuer compares the issuers byte for byte, as Entra does (OpenID Connect Discovery
// 1.0, section 4.3). Often only one of them ends in a slash.
func (r *run) sameIssuer(published string) Finding {
	if published == r.token.Issuer {
		return Finding{Status: OK, Item: "issuer", Text: "the document and the token have the same issuer, byte for byte"}
	}
	f := Finding{Status: Fail, Item: "issuer",
		Text:   fmt.Sprintf("the document has the issuer %q, but the token has %q", clip(published), clip(r.token.Issuer)),
		Remedy: "use the same issuer in the API server's --service-account-issuer and in the published document"}
	if strings.TrimRight(published, "/") == strings.TrimRight(r.token.Issuer, "/") {
		f.Text += ": they differ in the trailing slash"
	}
	return f
}

func (r *run) tokenKey(keys keySet) Finding {
	id := r.token.KeyID
	if id == "" {
		return Finding{Status: Note, Item: "key", Text: "the token has no key ID (kid)"}
	}
	if slices.Contains(keys.Keys, key{ID: id}) {
		return Finding{Status: OK, Item: "key", Text: fmt.Sprintf("%q, which signed the token, is published", clip(id))}
	}
	return Finding{Status: Fail, Item: "key", Text: fmt.Sprintf("%q, which signed the token, is not among the published keys (%d)", clip(id), len(keys.Keys)),
		Remedy: "publish the cluster's current signing keys at the issuer (kubectl get --raw /openid/v1/jwks); after a key rotation, restart the pod to renew the token"}
}

// errNotJSON and statusError are the errors for an answer that is not the document.
var errNotJSON = errors.New("the answer is not the expected JSON")

type statusError int

func (e statusError) Error() string { return fmt.Sprintf("answered with status %d", int(e)) }

// getJSON reads a document. The client bounds the body and follows no redirects.
func getJSON(ctx context.Context, client *http.Client, location string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, documentTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return errNotJSON // jwks_uri is not a URL
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return statusError(resp.StatusCode)
	}
	if json.NewDecoder(resp.Body).Decode(into) != nil {
		return errNotJSON
	}
	return nil
}

// withoutQuotes replaces characters with which untrusted text could break out of single
// quotes in a shell command.
var withoutQuotes = strings.NewReplacer("'", "?", `\`, "?", "`", "?", "$", "?", `"`, "?")

// errLinkLocal is the error for an issuer with a link-local address.
var errLinkLocal = errors.New("link-local address")

// refuseLinkLocal prevents SSRF. It is a net.Dialer.Control, which runs after the name is
// resolved, so that no DNS name can hide the address (DNS rebinding).
func refuseLinkLocal(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%w: %w", errLinkLocal, err)
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsLinkLocalUnicast() {
		return errLinkLocal
	}
	return nil
}
