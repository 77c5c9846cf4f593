package imds

import (
	"net/http"
	"net/netip"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// selectorKind is the parameter by which a request names an identity.
type selectorKind int

const (
	byNothing selectorKind = iota
	byClientID
	byObjectID
	byResourceID
)

// selector names an identity as the caller did. It is not validated.
type selector struct {
	kind  selectorKind
	value string
}

// tokenRequest is what a query asks of the token endpoint.
type tokenRequest struct {
	resource string
	selector selector
	// fresh: the caller has reason not to want a cached token.
	fresh bool
	// unversioned: there was no api-version.
	unversioned bool
}

// checkHeaders enforces what keeps a request that an attacker had forged by
// another program (SSRF) from being answered.
func checkHeaders(r *http.Request) error {
	if err := requireMetadata(r); err != nil {
		return err
	}
	return refuseForeign(r)
}

// requireMetadata asks for the header that a forged request cannot have. It comes
// first whatever else is wrong, since clients probe for IMDS without it.
func requireMetadata(r *http.Request) error {
	metadata := r.Header["Metadata"]
	if len(metadata) != 1 || !azure.EqualFoldASCII(metadata[0], "true") {
		return errNoMetadataHeader
	}
	return nil
}

// refuseForeign refuses what has come through a proxy that serves others, or was
// meant for another host.
func refuseForeign(r *http.Request) error {
	if _, present := r.Header["X-Forwarded-For"]; present {
		return errForwardedFor
	}
	if !localHost(r.Host) {
		return errForeignHost
	}
	return nil
}

// parseTokenRequest reads the query of a token request and refuses it in the
// order in which IMDS looks at it.
func parseTokenRequest(rawQuery string, strictVersion bool) (tokenRequest, error) {
	var stack [maxParams]param // keeps the parameters off the heap
	params, err := appendParams(stack[:0], rawQuery)
	if err != nil {
		return tokenRequest{}, err
	}
	req := tokenRequest{unversioned: true}
	var failed paramErrors
	for _, p := range params {
		req.set(p, &failed)
	}
	if req.unversioned && strictVersion {
		failed.version = errNoAPIVersion
	}
	if req.resource == "" {
		failed.resource = errNoResource
	}
	return req, failed.first()
}

// paramErrors holds what is wrong with each parameter until all have been seen:
// the answer must not depend on the order in which they come.
type paramErrors struct{ name, version, resource, selector error }

func (e *paramErrors) first() error {
	for _, err := range [...]error{e.name, e.version, e.resource, e.selector} {
		if err != nil {
			return err
		}
	}
	return nil
}

// set takes one parameter. An empty value is as good as none, for scripts that
// send client_id=$UNSET, but no version; names that IMDS does not know are ignored.
func (req *tokenRequest) set(p param, failed *paramErrors) {
	switch p.name {
	case "api-version":
		req.unversioned = false
		if !knownVersion(p.value) {
			failed.version = errUnknownAPIVersion
		}
	case "resource":
		req.resource = p.value
		if _, err := azure.ParseResource(p.value); err != nil {
			failed.resource = errMalformedResource
		}
	case "client_id":
		req.selectBy(byClientID, p.value, failed)
	case "object_id":
		req.selectBy(byObjectID, p.value, failed)
	case "msi_res_id", "mi_res_id":
		req.selectBy(byResourceID, p.value, failed)
	case "bypass_cache":
		req.fresh = req.fresh || azure.EqualFoldASCII(p.value, "true")
	case "token_sha256_to_refresh":
		req.fresh = req.fresh || p.value != ""
	default:
		if knownNameFold(p.name) {
			failed.name = errParamCase
		}
	}
}

func (req *tokenRequest) selectBy(kind selectorKind, value string, failed *paramErrors) {
	if value == "" {
		return
	}
	if req.selector.kind != byNothing {
		failed.selector = errSeveralSelectors
	}
	req.selector = selector{kind, value}
}

// knownNameFold reports whether name is a parameter of ours in another case.
// Ignoring CLIENT_ID=… would answer with the token of another identity.
func knownNameFold(name string) bool {
	for _, known := range [...]string{"api-version", "resource", "client_id", "object_id", "msi_res_id", "mi_res_id"} {
		if azure.EqualFoldASCII(name, known) {
			return true
		}
	}
	return false
}

// localHost reports whether a Host header can be that of a client which means
// this proxy: absent (HTTP/1.0), an IP address, or a name without a dot such as
// localhost.
//
// It stops DNS rebinding: a page from attacker.example, shown by a browser in
// the pod (a headless one that renders PDFs, say), may point that name at the
// metadata address and then set any header it likes, Metadata too, since it
// talks to its own origin. It cannot choose the Host header. IMDS's clients
// send the address that they dial.
func localHost(host string) bool {
	if host == "" {
		return true
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	if _, err := netip.ParseAddrPort(host); err == nil {
		return true
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		_, err := netip.ParseAddr(strings.TrimSuffix(inner, "]"))
		return err == nil
	}
	name, _, _ := strings.Cut(host, ":")
	return !strings.Contains(name, ".")
}
