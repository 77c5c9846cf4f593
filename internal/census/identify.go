package census

import (
	"cmp"
	"regexp"
	"strconv"
	"strings"
)

// sdk is a client library or program that this package recognizes.
type sdk struct {
	// product is the name that the client sends, in lower case: the product of a
	// User-Agent (RFC 9110, section 10.1.5), or the value of x-client-SKU.
	product string
	// name is what the census calls it. Empty: product.
	name string
	// since is the first version that supports workload identity. Empty: none does.
	since string
	// upgrade says what to use instead of an older version.
	upgrade string
}

// libraries are the libraries that send their own name in a token request. If a User-Agent
// has several of them, the first one in this table counts, so a library must come before
// the library that it is built on.
var libraries = [...]sdk{
	{"azsdk-go-azidentity", "go-azidentity", "1.3.0", "azidentity (Go)"},
	{"azsdk-python-identity", "python-azure-identity", "1.13.0", "azure-identity (Python)"},
	{"azsdk-js-identity", "js-azure-identity", "3.2.0", "@azure/identity (Node)"},
	{"azsdk-net-identity", "net-azure-identity", "1.9.0", "Azure.Identity (.NET)"},
	{"azsdk-java-azure-identity", "java-azure-identity", "1.9.0", "azure-identity (Java)"},
	{"azsdk-java-identity", "java-azure-identity", "1.9.0", "azure-identity (Java)"},
	{"azsdk-cpp-identity", "cpp-azure-identity", "1.6.0", "azure-identity-cpp"},
	// Earlier versions have a WorkloadIdentityCredential that reads the federated token
	// only once, although the kubelet replaces it.
	{"azsdk-rust-identity", "rust-azure-identity", "0.24.0", "azure_identity (Rust)"},

	// The Azure CLI accepts a federated token as an argument, but does not look for one.
	{"azurecli", "azure-cli", "", "az login --federated-token, in place of --identity"},

	// Libraries that were discontinued before workload identity existed.
	{"go-autorest", "go-autorest", "", "azidentity (Go) 1.3.0 or later"},
	{"msrest_azure", "python-msrestazure", "", "azure-identity (Python) 1.13.0 or later"},
}

// msal are the MSAL libraries by the value of x-client-SKU. With MSAL the application
// itself must read the federated token and pass it as client assertion. The Azure
// Identity libraries, which also send their own name, do this for the application.
var msal = [...]sdk{
	{"msal.go", "msal-go", "", "azidentity (Go) 1.3.0 or later, or MSAL's client assertion"},
	{"msal.js.node", "msal-node", "", "@azure/identity (Node) 3.2.0 or later, or MSAL's client assertion"},
	{"msal.python", "msal-python", "", "azure-identity (Python) 1.13.0 or later, or MSAL's client assertion"},
	{"msal.java", "msal-java", "", "azure-identity (Java) 1.9.0 or later, or MSAL's client assertion"},
	{"msal.net", "msal-net", "", "Azure.Identity (.NET) 1.9.0 or later, or MSAL's client assertion"},
	{"msal.netcore", "msal-net", "", "Azure.Identity (.NET) 1.9.0 or later, or MSAL's client assertion"},
	{"msal.coreclr", "msal-net", "", "Azure.Identity (.NET) 1.9.0 or later, or MSAL's client assertion"},
	{"msal.desktop", "msal-net", "", "Azure.Identity (.NET) 1.9.0 or later, or MSAL's client assertion"},
}

// programs are HTTP clients and tools. Code that uses them for a token request does not
// send its own name.
var programs = [...]sdk{
	{product: "azcopy"}, {product: "fluent-bit"}, {product: "curl"}, {product: "wget"},
	{product: "node-fetch"}, {product: "axios"}, {product: "go-http-client"},
	{product: "python-requests"}, {product: "python-urllib"}, {product: "aiohttp", name: "python-aiohttp"},
	{product: "okhttp"}, {product: "apache-httpclient"},
	{product: "powershell"}, {product: "windowspowershell", name: "powershell"}, {product: "java"},
}

// identify returns the caller for a signature. It looks for the name of a library first,
// then for MSAL's headers, and last for the name of an HTTP client.
func identify(s signature) Caller {
	products := parseProducts(s.userAgent)
	if caller, ok := find(libraries[:], products); ok {
		return caller
	}
	sku := map[string]string{strings.ToLower(strings.TrimSpace(s.sku)): s.version}
	if caller, ok := find(msal[:], sku); ok {
		return caller
	}
	if caller, ok := find(programs[:], products); ok {
		return caller
	}
	return Caller{SDK: "unknown", WorkloadIdentity: Unknown}
}

// find returns the caller for the first entry of table that is among products, which
// maps names to versions.
func find(table []sdk, products map[string]string) (Caller, bool) {
	for _, k := range table {
		if written, ok := products[k.product]; ok {
			return k.caller(parseVersion(written)), true
		}
	}
	return Caller{}, false
}

// caller returns the caller for one version of the SDK.
func (k sdk) caller(version string) Caller {
	c := Caller{SDK: cmp.Or(k.name, k.product), Version: version, WorkloadIdentity: No}
	switch {
	case k.since == "" && k.upgrade == "":
		c.WorkloadIdentity = Unknown
	case k.since == "":
		c.Upgrade = k.upgrade
	case version == "":
		c.WorkloadIdentity = Unknown
		c.Upgrade = k.upgrade + " " + k.since + " or later"
	case older(version, k.since):
		c.Upgrade = k.upgrade + " " + k.since + " or later"
	default:
		c.WorkloadIdentity = Yes
		c.Upgrade = "no upgrade needed: use WorkloadIdentityCredential, or DefaultAzureCredential where there is one, in place of ManagedIdentityCredential"
	}
	return c
}

// maxProducts bounds the products that are read of a User-Agent.
const maxProducts = 16

// parseProducts returns the products of a User-Agent with their versions. It skips
// comments, which are in parentheses. If a product occurs twice, the first one counts.
func parseProducts(userAgent string) map[string]string {
	products := make(map[string]string)
	depth := 0
	for _, word := range strings.Fields(userAgent) {
		if len(products) >= maxProducts {
			break
		}
		inComment := depth > 0 || word[0] == '('
		depth = max(depth+strings.Count(word, "(")-strings.Count(word, ")"), 0)
		if inComment {
			continue
		}
		name, version, _ := strings.Cut(word, "/")
		name = strings.ToLower(name)
		if _, given := products[name]; !given {
			products[name] = version
		}
	}
	return products
}

// versionPattern matches a version as the SDKs write it: numbers and, for a
// pre-release, one of a few words. Anything else could be arbitrary text.
var versionPattern = regexp.MustCompile(`^v?([0-9]{1,5}(?:\.[0-9]{1,5}){0,3}(?:(?:a|b|rc|-(?:alpha|beta|preview|rc))[0-9.]{0,12})?)(?:[^0-9A-Za-z.]|$)`)

// parseVersion returns the part of written that is a version, or "" if there is none.
func parseVersion(written string) string {
	match := versionPattern.FindStringSubmatch(strings.ToLower(written))
	if match == nil {
		return ""
	}
	return strings.TrimRight(match[1], ".")
}

// older reports whether version comes before since. A pre-release comes before its
// release: 1.13.0b2 before 1.13.0.
func older(version, since string) bool {
	numbers, early := version, false
	if i := strings.IndexFunc(version, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); i >= 0 {
		numbers, early = version[:i], true
	}
	have, want := strings.Split(numbers, "."), strings.Split(since, ".")
	for i := range max(len(have), len(want)) {
		if order := cmp.Compare(number(have, i), number(want, i)); order != 0 {
			return order < 0
		}
	}
	return early
}

// number returns the i-th part of a version, or 0 if the version has fewer parts.
func number(parts []string, i int) int {
	if i >= len(parts) {
		return 0
	}
	n, _ := strconv.Atoi(parts[i]) // cannot fail: versionPattern allows only digits
	return n
}
