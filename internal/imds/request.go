package imds

import (
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

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

// selector names an identity in the caller's form. It is not validated.
type selector struct {
	kind  selectorKind
	value string
}

// tokenRequest is the parsed query of a token request.
type tokenRequest struct {
	resource    string
	selector    selector
	fresh       bool // the caller does not want a token from the cache
	unversioned bool // the query has no api-version
}

// checkHeaders refuses requests that an attacker can cause another program to send (SSRF,
// DNS rebinding).
func checkHeaders(r *http.Request) error {
	if err := requireMetadata(r); err != nil {
		return err
	}
	return refuseForeign(r)
}

// requireMetadata requires the header that a request by SSRF cannot have. This check comes
// before all others, because clients that probe for IMDS send no such header and expect
// this error.
func requireMetadata(r *http.Request) error {
	metadata := r.Header["Metadata"]
	if len(metadata) != 1 || !azure.EqualFoldASCII(metadata[0], "true") {
		return errNoMetadataHeader
	}
	return nil
}

// refuseForeign refuses requests that another proxy has forwarded, or that have the Host
// header of another host.
func refuseForeign(r *http.Request) error {
	if _, present := r.Header["X-Forwarded-For"]; present {
		return errForwardedFor
	}
	// HTTP/1.0 has no Host. Where it is required, clients do not leave it empty.
	if absent := r.Host == "" && !r.ProtoAtLeast(1, 1); !absent && !localHost(r.Host) {
		return errForeignHost
	}
	return nil
}

// parseTokenRequest parses the query of a token request. If several parameters are wrong,
// it returns the error that IMDS returns.
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

// paramErrors collects the errors of all parameters, so that the answer does not depend on
// their order in the query.
type paramErrors struct{ name, version, resource, unknown, selector error }

func (e *paramErrors) first() error {
	for _, err := range [...]error{e.name, e.version, e.resource, e.unknown, e.selector} {
		if err != nil {
			return err
		}
	}
	return nil
}

// set sets the fields for one parameter. An empty value counts as missing, for scripts that
// send client_id=$UNSET; only an empty api-version is an error. Unknown names are ignored,
// unless they could name an identity.
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
	case "bypass_cache":
		req.fresh = req.fresh || azure.EqualFoldASCII(p.value, "true")
	case "token_sha256_to_refresh":
		req.fresh = req.fresh || p.value != ""
	default:
		req.setSelector(p, failed)
	}
}

// setSelector sets the selector if the parameter names an identity. If a client names an
// identity in a way that is not known here, the request is refused: if the parameter were
// ignored, the client would get the default identity's token.
func (req *tokenRequest) setSelector(p param, failed *paramErrors) {
	switch kind := selectorKinds[p.name]; {
	case kind != byNothing:
		req.selectBy(kind, p.value, failed)
	case knownNameFold(p.name):
		failed.name = errParamCase
	case looksLikeSelector(p):
		failed.unknown = errUnknownSelector
	}
}

// selectorKinds are the parameters by which clients name an identity: the four of IMDS
// first, then those that clients send to it although they belong to another protocol.
var selectorKinds = map[string]selectorKind{
	"client_id":  byClientID,
	"object_id":  byObjectID,
	"msi_res_id": byResourceID,
	"mi_res_id":  byResourceID,

	// App Service, version 2017-09-01: @azure/identity (Node) 4.7 and azure-identity (Java)
	// 1.5, if MSI_ENDPOINT is set.
	"clientid": byClientID,
	// App Service, version 2019-08-01: azure-identity-cpp, AppServiceManagedIdentitySource.
	"principal_id": byObjectID,
	// azure-identity (Python) 1.8 to 1.17 sends the keys of identity_config unchanged.
	"resource_id": byResourceID,
	// The probe of DefaultAzureCredential (.NET), ImdsManagedIdentityProbeSource.cs in
	// Azure.Core. It has no Metadata header and gets an error for that, as from IMDS.
	"msi-res-id": byResourceID,
}

// selectorWords are parts of the names of parameters that name an identity, as the Azure
// SDKs, ARM, Entra and the Azure CLI call it. No other parameter that a client is known to
// send contains one of them (api-version, resource, bypass_cache, token_sha256_to_refresh,
// xms_cc and claims of the MSAL libraries, authority of hadoop-azure).
var selectorWords = [...]string{
	"client", "object", "principal", "resourceid", "resid", "identity", "assigned", "managed",
	"msi", "uami", "mirid", "appid", "application", "oid",
}

// looksLikeSelector reports whether a parameter that is not known here could name an
// identity: the letters of its name contain one of selectorWords or start with mi (managed
// identity), or they are id; or the name is not ASCII, so that it could show one of these in
// other characters; or the value is the resource ID of an identity.
func looksLikeSelector(p param) bool {
	name := make([]byte, 0, 32)
	for i := range len(p.name) {
		switch c := p.name[i] | 0x20; {
		case p.name[i] >= utf8.RuneSelf:
			return true
		case 'a' <= c && c <= 'z':
			name = append(name, c)
		}
	}
	letters := string(name)
	for _, word := range selectorWords {
		if strings.Contains(letters, word) {
			return true
		}
	}
	if letters == "id" || strings.HasPrefix(letters, "mi") {
		return true
	}
	_, err := azure.ParseResourceID(p.value)
	return err == nil
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

// knownNameFold reports whether name is the name of a known parameter in another case. If
// CLIENT_ID=… were ignored, the caller would get another identity's token.
func knownNameFold(name string) bool {
	for known := range selectorKinds {
		if azure.EqualFoldASCII(name, known) {
			return true
		}
	}
	return azure.EqualFoldASCII(name, "api-version") || azure.EqualFoldASCII(name, "resource")
}

// localHost reports whether the Host header can come from a client of IMDS: it is an IP
// address, or a name without a dot such as localhost, each with or without a port. Clients of
// IMDS send the address that they connect to.
//
// This stops DNS rebinding: a browser in the pod, for example a headless one that renders
// PDFs, loads a page from attacker.example, and the attacker then changes the DNS entry of
// this name to the metadata address. The page can set any header, also Metadata, because
// it sends the request to its own origin. It cannot change the Host header.
//
// Other spellings are refused, although no browser sends them: two parsers could read them
// differently (localhost:80.attacker.example), and filters against SSRF overlook numbers
// that some clients take for an address (2852039166, 0xa9fea9fe).
func localHost(host string) bool {
	name := host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		if _, err := strconv.ParseUint(host[i+1:], 10, 16); err != nil {
			return false
		}
		name = host[:i]
	}
	if inner, ok := strings.CutPrefix(name, "["); ok {
		inner, closed := strings.CutSuffix(inner, "]")
		addr, err := netip.ParseAddr(inner)
		return closed && err == nil && addr.Is6() && addr.Zone() == ""
	}
	if addr, err := netip.ParseAddr(name); err == nil {
		return addr.Is4()
	}
	return localName(name)
}

// localName reports whether a name is one label of a host name, which starts with a letter.
func localName(name string) bool {
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case i > 0 && ('0' <= c && c <= '9' || c == '-' || c == '_'):
		default:
			return false
		}
	}
	return name != ""
}

// maxParams bounds the search for duplicate names. Real clients send at most five
// parameters.
const maxParams = 32

// param is a decoded parameter of a query.
type param struct{ name, value string }

// appendParams decodes a raw query and appends its parameters to params. It rejects
// ambiguous queries, which two parsers could read differently: duplicate names, a bare
// semicolon (some parsers take it as a separator), and malformed escapes.
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

// hasParam reports whether params has a name, in any case: to a parser that ignores the
// case, such names are duplicates.
func hasParam(params []param, name string) bool {
	for _, p := range params {
		if azure.EqualFoldASCII(p.name, name) {
			return true
		}
	}
	return false
}

// encodeParams encodes parsed parameters as a query, so that a forwarded request has none
// of the caller's raw bytes.
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

// escapeParam escapes a name or a value. It encodes a space as %20, which every parser
// reads as a space; some read + as a plus sign.
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

// knownVersion reports whether the token endpoint accepts an api-version.
func knownVersion(v string) bool {
	if v == "2018-02-01" || v == "2017-09-01" { // SDKs send the first, old scripts the second
		return true
	}
	for _, known := range apiVersions() {
		if v == known {
			return true
		}
	}
	return false
}
