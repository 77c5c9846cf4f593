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

// documentTimeout bounds the fetch of one document of the issuer's. Where packets to it
// are dropped, the check takes this much longer.
const documentTimeout = 5 * time.Second

// entraNeeds is why it does not matter that this pod cannot read a document.
const entraNeeds = "no fault by itself: Entra has to reach it, the pod does not"

// discoveryDocument is what is read of an issuer's OpenID configuration.
type discoveryDocument struct {
	Issuer  string `json:"issuer"`
	KeysURL string `json:"jwks_uri"`
}

// keySet is what is read of an issuer's keys (RFC 7517).
type keySet struct {
	Keys []key `json:"keys"`
}

type key struct {
	ID string `json:"kid"`
}

// issuer reads the issuer's documents as Entra does, and checks that they have what Entra
// will look for.
func (w *walk) issuer(ctx context.Context) []Finding {
	if w.token == nil {
		return skipped("discovery", "there is no federated token to name the issuer")
	}
	host, err := url.Parse(w.token.Issuer)
	if err != nil || host.Scheme != "https" || host.Host == "" {
		return skipped("discovery", "the issuer is no https URL")
	}
	if clusterInternal(host.Hostname()) {
		return []Finding{{Status: Fail, Item: "discovery", Text: host.Hostname() + " is a name of the cluster's own: Entra cannot reach it",
			Remedy: "enable the cluster's public issuer: az aks update --name CLUSTER --resource-group GROUP --enable-oidc-issuer; " +
				"elsewhere, the API server's --service-account-issuer"}}
	}
	client, err := exchange.NewHTTPClient(exchange.Config{
		CAFile: w.cfg.Exchange.CAFile,
		Proxy:  w.cfg.Exchange.Proxy,
		Dial:   (&net.Dialer{Timeout: documentTimeout, Control: refuseLinkLocal}).DialContext,
	})
	if err != nil {
		return skipped("discovery", err.Error())
	}
	defer client.CloseIdleConnections()
	return w.issuerDocuments(ctx, client)
}

// clusterInternal reports whether only the cluster's DNS resolves the name.
func clusterInternal(host string) bool {
	return strings.HasSuffix(host, ".svc") || strings.HasSuffix(host, ".cluster.local") || host == "kubernetes" || host == "kubernetes.default"
}

func (w *walk) issuerDocuments(ctx context.Context, client *http.Client) []Finding {
	location := strings.TrimSuffix(w.token.Issuer, "/") + "/.well-known/openid-configuration"
	var document discoveryDocument
	if err := getJSON(ctx, client, location, &document); err != nil {
		return []Finding{
			unread("discovery", location, err),
			{Status: Skipped, Item: "key", Text: "the discovery document says where the keys are"},
		}
	}
	findings := []Finding{
		{Status: OK, Item: "discovery", Text: location},
		w.sameIssuer(document.Issuer),
	}
	var keys keySet
	if err := getJSON(ctx, client, document.KeysURL, &keys); err != nil {
		return append(findings, unread("keys", address(document.KeysURL), err))
	}
	return append(findings, Finding{Status: OK, Item: "keys", Text: address(document.KeysURL)}, w.tokenKey(keys))
}

func unread(item, location string, err error) Finding {
	return Finding{Status: Note, Item: item, Text: fmt.Sprintf("%s cannot be read from this pod (%s); %s", location, whyUnread(err), entraNeeds),
		Remedy: "from a machine outside, curl '" + withoutQuotes.Replace(printable(location)) + "'"}
}

// whyUnread says in fixed words why a document was not read.
func whyUnread(err error) string {
	switch status, ok := errors.AsType[statusError](err); {
	case ok:
		return status.Error()
	case errors.Is(err, errNotJSON):
		return errNotJSON.Error()
	case errors.Is(err, errLinkLocal):
		return "a link-local address, which is not asked"
	}
	return exchange.FaultOf(err, "the issuer").Text
}

// sameIssuer compares as Entra does (OpenID Connect Discovery 1.0, section 4.3):
// byte for byte. The usual fault is a slash at the end of one of them.
func (w *walk) sameIssuer(published string) Finding {
	if published == w.token.Issuer {
		return Finding{Status: OK, Item: "issuer", Text: "the document names the token's issuer, byte for byte"}
	}
	f := Finding{Status: Fail, Item: "issuer",
		Text:   fmt.Sprintf("the document names %q, the token %q", clip(published), clip(w.token.Issuer)),
		Remedy: "make the API server's --service-account-issuer and the published document the same"}
	if strings.TrimRight(published, "/") == strings.TrimRight(w.token.Issuer, "/") {
		f.Text += ": they differ in the trailing slash"
	}
	return f
}

func (w *walk) tokenKey(keys keySet) Finding {
	id := w.token.KeyID
	if id == "" {
		return Finding{Status: Note, Item: "key", Text: "the token names none (kid)"}
	}
	if slices.Contains(keys.Keys, key{ID: id}) {
		return Finding{Status: OK, Item: "key", Text: fmt.Sprintf("%q, which signed the token, is among them", clip(id))}
	}
	return Finding{Status: Fail, Item: "key", Text: fmt.Sprintf("%q, which signed the token, is not among the %d published", clip(id), len(keys.Keys)),
		Remedy: "publish the cluster's current signing keys at the issuer (kubectl get --raw /openid/v1/jwks); after a rotation, have the token renewed: restart the pod"}
}

// errNotJSON and statusError say that the answer is not the document.
var errNotJSON = errors.New("the answer is not the JSON that it should be")

type statusError int

func (e statusError) Error() string { return fmt.Sprintf("answered with status %d", int(e)) }

// getJSON reads a document. The client bounds the body, and follows no redirect.
func getJSON(ctx context.Context, client *http.Client, location string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, documentTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, location, nil)
	if err != nil {
		return errNotJSON // a jwks_uri that is no URL
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

// withoutQuotes replaces what could end single quotes in a command that is pasted into
// a shell.
var withoutQuotes = strings.NewReplacer("'", "?", `\`, "?", "`", "?", "$", "?", `"`, "?")

// errLinkLocal is the error for a host that a claim names and that is not asked.
var errLinkLocal = errors.New("a link-local address")

// refuseLinkLocal is for net.Dialer.Control: it runs after the name was resolved, so that
// no name can hide the address (SSRF).
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
