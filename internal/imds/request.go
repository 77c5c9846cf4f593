package imds

import (
	"net/http"
	"net/netip"
	"net/url"
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

// maxParams bounds the work of looking for names given twice. Real clients send
// at most five parameters.
const maxParams = 32

// param is one decoded name and value of a query.
type param struct{ name, value string }

// appendParams decodes a raw query and appends its parameters to params. It
// refuses what two parsers could read in two ways: a name given twice, a bare
// semicolon (a separator to some), and malformed escapes.
func appendParams(params []param, rawQuery string) ([]param, error) {
	if strings.IndexByte(rawQuery, ';') >= 0 {
		return nil, errMalformedQuery
	}
	for rawQuery != "" {
		var pair string
		pair, rawQuery, _ = strings.Cut(rawQuery, "&")
		if pair == "" {
			continue
		}
		p, err := decodePair(pair)
		if err != nil {
			return nil, err
		}
		if hasParam(params, p.name) {
			return nil, errDuplicateParam
		}
		if len(params) == maxParams {
			return nil, errMalformedQuery
		}
		params = append(params, p)
	}
	return params, nil
}

func decodePair(pair string) (param, error) {
	rawName, rawValue, _ := strings.Cut(pair, "=")
	name, err := url.QueryUnescape(rawName)
	if err != nil {
		return param{}, errMalformedQuery
	}
	value, err := url.QueryUnescape(rawValue)
	if err != nil {
		return param{}, errMalformedQuery
	}
	return param{name, value}, nil
}

// hasParam compares without case: a parser that folds names would see the name twice.
func hasParam(params []param, name string) bool {
	for _, p := range params {
		if azure.EqualFoldASCII(p.name, name) {
			return true
		}
	}
	return false
}

// encodeParams writes a query anew from what was understood of it, so that no
// byte of the caller's spelling is forwarded.
func encodeParams(params []param) string {
	var b strings.Builder
	for i, p := range params {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(escapeParam(p.name))
		b.WriteByte('=')
		b.WriteString(escapeParam(p.value))
	}
	return b.String()
}

// escapeParam spells a space as %20, which every parser reads as a space; + is
// read as a plus sign by some.
func escapeParam(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// apiVersions returns the versions that IMDS documents, oldest first.
func apiVersions() []string {
	return []string{
		"2017-03-01", "2017-04-02", "2017-08-01", "2017-10-01", "2017-12-01",
		"2018-02-01", "2018-04-02", "2018-10-01",
		"2019-02-01", "2019-03-11", "2019-04-30", "2019-06-01", "2019-06-04",
		"2019-08-01", "2019-08-15", "2019-11-01",
		"2020-06-01", "2020-07-15", "2020-09-01", "2020-10-01", "2020-12-01",
		"2021-01-01", "2021-02-01", "2021-03-01", "2021-05-01", "2021-08-01", "2021-10-01",
		"2021-11-01", "2021-11-15", "2021-12-13",
		"2023-07-01", "2023-11-15", "2024-03-15", "2024-07-17", "2025-04-07",
	}
}

// knownVersion reports whether the token endpoint takes an api-version: what
// SDKs send first, then what old scripts send, then the documented ones.
func knownVersion(v string) bool {
	if v == "2018-02-01" || v == "2017-09-01" {
		return true
	}
	for _, known := range apiVersions() {
		if v == known {
			return true
		}
	}
	return false
}
