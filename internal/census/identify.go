package census

import (
	"cmp"
	"regexp"
	"strconv"
	"strings"
)

// sdk is a client library or program that this package can tell.
type sdk struct {
	// product is how it names itself, in lower case: the product of a User-Agent
	// (RFC 9110, section 10.1.5), or the value of x-client-SKU.
	product string
	name    string
	// since is the first version that speaks workload identity. Empty: none does.
	since string
	// upgrade is what to do where the version is older.
	upgrade string
}

// libraries ask IMDS for tokens by their own name. Where a User-Agent has several,
// the first of this table counts: a library before what it is built on.
var libraries = [...]sdk{
	{"azsdk-go-azidentity", "go-azidentity", "1.3.0", "azidentity (Go)"},
	{"azsdk-python-identity", "python-azure-identity", "1.13.0", "azure-identity (Python)"},
	{"azsdk-js-identity", "js-azure-identity", "3.2.0", "@azure/identity (Node)"},
	{"azsdk-net-identity", "net-azure-identity", "1.9.0", "Azure.Identity (.NET)"},
	{"azsdk-java-azure-identity", "java-azure-identity", "1.9.0", "azure-identity (Java)"},
	{"azsdk-java-identity", "java-azure-identity", "1.9.0", "azure-identity (Java)"},
	{"azsdk-cpp-identity", "cpp-azure-identity", "1.6.0", "azure-identity-cpp"},
	// There was a WorkloadIdentityCredential before, which read the token once; the
	// kubelet replaces it.
	{"azsdk-rust-identity", "rust-azure-identity", "0.24.0", "azure_identity (Rust)"},

	// The command line takes a federated token, but does not look for one.
	{"azurecli", "azure-cli", "", "az login --federated-token, in place of --identity"},

	// Libraries that ended before workload identity.
	{"go-autorest", "go-autorest", "", "azidentity (Go) 1.3.0 or later"},
	{"msrest_azure", "python-msrestazure", "", "azure-identity (Python) 1.13.0 or later"},
}

// msal are the values of x-client-SKU. MSAL leaves it to the application to fetch
// and present the assertion; the Azure Identity libraries, which name themselves
// beside it, do that on their own.
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

// programs are HTTP clients and tools: what asks for the token is something that
// they do not tell, or has no name of its own.
var programs = [...]sdk{
	{product: "azcopy", name: "azcopy"},
	{product: "fluent-bit", name: "fluent-bit"},
	{product: "curl", name: "curl"},
	{product: "wget", name: "wget"},
	{product: "node-fetch", name: "node-fetch"},
	{product: "axios", name: "axios"},
	{product: "go-http-client", name: "go-http-client"},
	{product: "python-requests", name: "python-requests"},
	{product: "python-urllib", name: "python-urllib"},
	{product: "aiohttp", name: "python-aiohttp"},
	{product: "okhttp", name: "okhttp"},
	{product: "apache-httpclient", name: "apache-httpclient"},
	{product: "powershell", name: "powershell"},
	{product: "windowspowershell", name: "powershell"},
	{product: "java", name: "java"},
}

// identify tells who a client says that it is: by the name of a library, else by
// MSAL's headers, which say more than an HTTP client's name does.
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

// find looks for the first of the table that is among the products, which map
// names to versions.
func find(table []sdk, products map[string]string) (Caller, bool) {
	for _, k := range table {
		if written, ok := products[k.product]; ok {
			return k.caller(parseVersion(written)), true
		}
	}
	return Caller{}, false
}

// caller is what is said of one version of an SDK.
func (k sdk) caller(version string) Caller {
	c := Caller{SDK: k.name, Version: version, WorkloadIdentity: No}
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

// maxProducts bounds what is looked at of a User-Agent.
const maxProducts = 16

// parseProducts reads the products of a User-Agent with their versions. Comments,
// in parentheses, say nothing of interest. The first of a name counts.
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

// versionPattern is a version as the SDKs write it: numbers and, for one that is
// not out yet, a word that says so. Everything else could be any text.
var versionPattern = regexp.MustCompile(`^v?([0-9]{1,5}(?:\.[0-9]{1,5}){0,3}(?:(?:a|b|rc|-(?:alpha|beta|preview|rc))[0-9.]{0,12})?)(?:[^0-9A-Za-z.]|$)`)

// parseVersion returns the part of a written version that is one. Empty: none is.
func parseVersion(written string) string {
	match := versionPattern.FindStringSubmatch(strings.ToLower(written))
	if match == nil {
		return ""
	}
	return strings.TrimRight(match[1], ".")
}

// older reports whether version comes before since. One that is not out yet comes
// before the one that is: 1.13.0b2 before 1.13.0.
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

// number is the i-th part of a version, 0 where it has no such part.
func number(parts []string, i int) int {
	if i >= len(parts) {
		return 0
	}
	n, _ := strconv.Atoi(parts[i]) // digits, by versionPattern
	return n
}
