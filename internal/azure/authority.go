package azure

import (
	"cmp"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Tenant is an Entra tenant as the user spelled it: a GUID or a domain.
type Tenant string

// AuthorityHost is the https URL of Entra in one cloud. It has no path and ends in a slash.
type AuthorityHost string

// TokenProxy is the https URL of an identity binding's token proxy. It may have a path.
type TokenProxy string

// MetadataURL is the URL of an instance metadata service: http://HOST or http://HOST:PORT.
type MetadataURL string

// The authority hosts of Azure's clouds.
const (
	PublicAuthorityHost       AuthorityHost = "https://login.microsoftonline.com/"
	USGovernmentAuthorityHost AuthorityHost = "https://login.microsoftonline.us/"
	ChinaAuthorityHost        AuthorityHost = "https://login.chinacloudapi.cn/"
)

// maxDomain is the maximum length of a domain name in DNS.
const maxDomain = 253

const (
	tenantReason      = "must be a tenant's ID (a GUID) or its domain, such as tenant.onmicrosoft.com"
	manyTenantsReason = "must be the ID or the domain of one tenant; this name stands for many"
	notEntraReason    = "must be the ID or the domain of an Entra tenant; this name is for another protocol"
	cloudReason       = "must be AzurePublicCloud, AzureUSGovernmentCloud or AzureChinaCloud; for another cloud set the authority host"
)

// ParseTenant parses a GUID, or a domain of two or more labels. A tenant becomes one segment
// of a URL's path; a valid one cannot add another segment.
func ParseTenant(s string) (Tenant, error) {
	if _, ok := ParseGUID(s); ok || len(s) <= maxDomain && isDomain(s) {
		return Tenant(s), nil
	}
	switch lowerASCII(s) {
	case "common", "organizations", "consumers":
		return "", Invalid(s, manyTenantsReason)
	case "adfs", "dstsv2": // MSAL speaks other protocols to authorities with these paths.
		return "", Invalid(s, notEntraReason)
	}
	return "", Invalid(s, tenantReason)
}

func isDomain(s string) bool {
	if !strings.Contains(s, ".") {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

// isLabel reports whether s consists of letters, digits and inner hyphens.
func isLabel(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && !isDigit(c) && (c != '-' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return s != ""
}

// ParseCloud returns the authority host of a cloud. It accepts the names that
// azure-workload-identity accepts, in upper or lower case.
func ParseCloud(name string) (AuthorityHost, error) {
	switch lowerASCII(name) {
	case "azurepubliccloud", "azurecloud":
		return PublicAuthorityHost, nil
	case "azureusgovernmentcloud", "azureusgovernment":
		return USGovernmentAuthorityHost, nil
	case "azurechinacloud":
		return ChinaAuthorityHost, nil
	}
	return "", Invalid(name, cloudReason)
}

// The errors about URLs. They do not quote the URL, which may contain a password.
var (
	errURL      = &Error{secret: true, reason: "must be an https URL, such as https://login.example.test"}
	errUser     = &Error{secret: true, reason: "must not contain a user or password"}
	errQuery    = &Error{secret: true, reason: "must not contain a query (?)"}
	errFragment = &Error{secret: true, reason: "must not contain a fragment (#)"}
	errPort     = &Error{secret: true, reason: "must have a port between 1 and 65535"}
	errPath     = &Error{secret: true, reason: "must not contain a path: the tenant is set separately"}
	errMetadata = &Error{secret: true, reason: "must be http://HOST or http://HOST:PORT"}
)

// ParseAuthorityHost parses the https URL of a host, with or without a slash at its end. It
// refuses a path: MSAL would use the first segment as the tenant.
func ParseAuthorityHost(s string) (AuthorityHost, error) {
	u, err := parseURL(s, "https")
	if err != nil {
		return "", err
	}
	if u.Path != "" && u.Path != "/" {
		return "", errPath
	}
	return AuthorityHost("https://" + u.Host + "/"), nil
}

// entraHosts has the hosts of each of Microsoft's clouds that are names of one service: the
// aliases in Entra's metadata for instance discovery. A host may have a region in front, such as
// westus.login.microsoft.com.
var entraHosts = [...][]string{
	{"login.microsoftonline.com", "login.windows.net", "login.microsoft.com", "sts.windows.net"},
	{"login.microsoftonline.us", "login.usgovcloudapi.net"},
	{"login.partner.microsoftonline.cn", "login.chinacloudapi.cn"},
}

// Serves reports whether address is an https URL of the authority: with the same host and port,
// or with another name of the same cloud of Microsoft. Azure's SDKs set login.chinacloudapi.cn,
// and Entra's documents there name login.partner.microsoftonline.cn.
func (h AuthorityHost) Serves(address string) bool {
	own, err := url.Parse(string(h))
	if err != nil {
		return false
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.User != nil || httpsPort(u) != httpsPort(own) {
		return false
	}
	host, ownHost := lowerASCII(u.Hostname()), lowerASCII(own.Hostname())
	if host == ownHost {
		return host != ""
	}
	cloud, ok := cloudOf(host)
	ownCloud, known := cloudOf(ownHost)
	return ok && known && cloud == ownCloud && httpsPort(u) == "443"
}

func httpsPort(u *url.URL) string { return cmp.Or(u.Port(), "443") }

// cloudOf returns which cloud of entraHosts a host belongs to.
func cloudOf(host string) (cloud int, ok bool) {
	_, withoutRegion, _ := strings.Cut(host, ".")
	for i, names := range entraHosts {
		if slices.Contains(names, host) || slices.Contains(names, withoutRegion) {
			return i, true
		}
	}
	return 0, false
}

// ParseTokenProxy parses the https URL of a token proxy.
func ParseTokenProxy(s string) (TokenProxy, error) {
	if _, err := parseURL(s, "https"); err != nil {
		return "", err
	}
	return TokenProxy(s), nil
}

// ParseMetadataURL parses the http URL of a host, with or without a slash at its end.
func ParseMetadataURL(s string) (MetadataURL, error) {
	u, err := parseURL(s, "http")
	if err != nil || u.Path != "" && u.Path != "/" {
		return "", errMetadata
	}
	return MetadataURL("http://" + u.Host), nil
}

// parseURL parses the URL of a host with the given scheme. The pod's credential is sent to
// authority hosts and token proxies, which must use https: http would send it unencrypted.
func parseURL(s, scheme string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != scheme || !isHost(u.Hostname()):
		return nil, errURL
	case u.User != nil:
		return nil, errUser
	case strings.Contains(s, "#"):
		return nil, errFragment
	case strings.Contains(s, "?"):
		return nil, errQuery
	case !isURI(s):
		return nil, errURL
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if _, err := ParsePort(port); err != nil {
			return nil, errPort
		}
	}
	return u, nil
}

// isHost reports whether s is an IP address or has only the characters of a DNS name.
// [net/url] accepts more.
func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return !strings.Contains(s, "%") // no zone
	}
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && !isDigit(c) && strings.IndexByte("-._", c) < 0 {
			return false
		}
	}
	return s != ""
}
