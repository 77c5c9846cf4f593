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
	// setting says what makes a version with workload identity use it. Empty: a credential
	// class of the Azure Identity libraries.
	setting string
}

// libraries are the libraries that send their own name in a token request. If a User-Agent
// has several of them, the first one in this table counts, so a library must come before
// the library that it is built on.
var libraries = [...]sdk{
	{"azsdk-go-azidentity", "go-azidentity", "1.3.0", "azidentity (Go)", ""},
	{"azsdk-python-identity", "python-azure-identity", "1.13.0", "azure-identity (Python)", ""},
	{"azsdk-js-identity", "js-azure-identity", "3.2.0", "@azure/identity (Node)", ""},
	{"azsdk-net-identity", "net-azure-identity", "1.9.0", "Azure.Identity (.NET)", ""},
	{"azsdk-java-azure-identity", "java-azure-identity", "1.9.0", "azure-identity (Java)", ""},
	{"azsdk-java-identity", "java-azure-identity", "1.9.0", "azure-identity (Java)", ""},
	{"azsdk-cpp-identity", "cpp-azure-identity", "1.6.0", "azure-identity-cpp", ""},
	// Earlier versions have a WorkloadIdentityCredential that reads the federated token
	// only once, although the kubelet replaces it.
	{"azsdk-rust-identity", "rust-azure-identity", "0.24.0", "azure_identity (Rust)", ""},

	// The Azure CLI accepts a federated token as an argument, but does not look for one.
	{"azurecli", "azure-cli", "", "az login --federated-token, in place of --identity", ""},

	// Since 1.61 rclone uses azidentity, with its own User-Agent: fs/fshttp/http.go. 1.63 is the
	// first version with azidentity 1.3.0.
	{"rclone", "rclone", "1.63.0", "rclone", "env_auth = true in place of use_msi"},
	// Asks IMDS since 0.5.4, if there is no federated token: azure/builder.rs.
	{"object_store", "rust-object-store", "0.5.4", "object_store (Rust)", "MicrosoftAzureBuilder::from_env, which reads AZURE_FEDERATED_TOKEN_FILE, AZURE_CLIENT_ID and AZURE_TENANT_ID"},
	// config/auth_azure_msi.go, useragent/user_agent.go. The first versions have Go's default.
	{"databricks-sdk-go", "databricks-sdk-go", "", "auth_type file-oidc with a federation policy in Databricks, or a token of azidentity (Go) 1.3.0 or later", ""},
	// The Microsoft ODBC driver for SQL Server: its library has the User-Agent as a string.
	{"azureadauthprovider", "msodbcsql", "", "an access token of an Azure Identity library, set by SQL_COPT_SS_ACCESS_TOKEN in place of Authentication=ActiveDirectoryMsi", ""},
	// HttpUtil.java of azure-security-keyvault-jca, and the same in its Spring starter. No
	// release up to 2.10.1 supports workload identity.
	{"az-se-kv-jca", "java-keyvault-jca", "", "azure-security-keyvault-certificates with azure-identity (Java) 1.9.0 or later", ""},
	{"az-sp-kv-jca", "java-keyvault-jca", "", "azure-security-keyvault-certificates with azure-identity (Java) 1.9.0 or later", ""},

	// Libraries that were discontinued before workload identity existed.
	{"go-autorest", "go-autorest", "", "azidentity (Go) 1.3.0 or later", ""},
	{"msrest_azure", "python-msrestazure", "", "azure-identity (Python) 1.13.0 or later", ""},
}

// msal are the MSAL libraries by the value of x-client-SKU. With MSAL the application
// itself must read the federated token and pass it as client assertion. The Azure
// Identity libraries, which also send their own name, do this for the application.
var msal = [...]sdk{
	{"msal.go", "msal-go", "", "azidentity (Go) 1.3.0 or later, or MSAL's client assertion", ""},
	{"msal.js.node", "msal-node", "", "@azure/identity (Node) 3.2.0 or later, or MSAL's client assertion", ""},
	{"msal.python", "msal-python", "", "azure-identity (Python) 1.13.0 or later, or MSAL's client assertion", ""},
	{"msal.java", "msal-java", "", "azure-identity (Java) 1.9.0 or later, or MSAL's client assertion", ""},
	{"msal.net", "msal-net", "", "Azure.Identity (.NET) 1.9.0 or later, or MSAL's client assertion", ""},
	{"msal.netcore", "msal-net", "", "Azure.Identity (.NET) 1.9.0 or later, or MSAL's client assertion", ""},
	{"msal.coreclr", "msal-net", "", "Azure.Identity (.NET) 1.9.0 or later, or MSAL's client assertion", ""},
	{"msal.desktop", "msal-net", "", "Azure.Identity (.NET) 1.9.0 or later, or MSAL's client assertion", ""},
}

// programs are HTTP clients and tools. Code that uses them for a token request does not
// send its own name, so whether it supports workload identity is unknown. upgrade says what
// the programs that are known to use them need.
var programs = [...]sdk{
	{product: "azcopy"}, {product: "fluent-bit"}, {product: "curl"}, {product: "wget"},
	{product: "node-fetch"}, {product: "axios"},
	// hamilton (auth/msi.go), Terraform's azurerm with go-azure-sdk
	// (sdk/auth/managed_identity_authorizer.go), databricks-sdk-go at first.
	{product: "go-http-client", upgrade: "Terraform azurerm: 3.85.0 or later with use_aks_workload_identity; hamilton: go-azure-sdk with OIDC; other programs: azidentity (Go) 1.3.0 or later"},
	// azcopy up to 10.20 (common/oauthTokenManager.go), and blobfuse2, which has a copy.
	{product: goWithoutCompression, name: "azcopy-or-blobfuse", upgrade: "azcopy 10.25.0 or later with AZCOPY_AUTO_LOGIN_TYPE=WORKLOAD"},
	{product: "python-requests"}, {product: "python-urllib"}, {product: "aiohttp", name: "python-aiohttp"},
	{product: "okhttp"}, {product: "apache-httpclient"},
	{product: "powershell"}, {product: "windowspowershell", name: "powershell"},
	{product: "faraday", name: "ruby-faraday"}, // ms_rest_azure
	// mssql-jdbc 8.3 to 11.2 (SQLServerSecurityUtility.java), MSAL4J before it had
	// x-client-SKU, hadoop-azure (AzureADAuthenticator.java).
	{product: "java", upgrade: "mssql-jdbc: 12.4 or later with authentication=ActiveDirectoryDefault; hadoop-azure: 3.4.1 or later with WorkloadIdentityTokenProvider; other programs: azure-identity (Java) 1.9.0 or later"},
}

// goWithoutCompression is Go's HTTP client if a program has turned compression off. It then
// sends no Accept-Encoding, which few programs do.
const goWithoutCompression = "go-http-client without accept-encoding"

// identify returns the caller for a signature. It looks for the name of a library first,
// then for MSAL's headers, and last for the name of an HTTP client.
func identify(s signature) Caller {
	products := parseProducts(s.userAgent)
	if version, ok := products["go-http-client"]; ok && s.unencoded {
		delete(products, "go-http-client")
		products[goWithoutCompression] = version
	}
	if caller, ok := find(libraries[:], products); ok {
		return caller
	}
	sku := map[string]string{strings.ToLower(strings.TrimSpace(s.sku)): s.version}
	if caller, ok := find(msal[:], sku); ok {
		return caller
	}
	if caller, ok := find(programs[:], products); ok {
		caller.WorkloadIdentity = Unknown
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
		c.Upgrade = k.laterVersion()
	case older(version, k.since):
		c.Upgrade = k.laterVersion()
	default:
		c.WorkloadIdentity = Yes
		c.Upgrade = "no upgrade needed: use " + cmp.Or(k.setting, "WorkloadIdentityCredential, or DefaultAzureCredential where there is one, in place of ManagedIdentityCredential")
	}
	return c
}

// laterVersion says which version to upgrade to, and how to make it use workload identity.
func (k sdk) laterVersion() string {
	text := k.upgrade + " " + k.since + " or later"
	if k.setting != "" {
		text += ", with " + k.setting
	}
	return text
}

// maxProducts bounds the products that are read of a User-Agent.
const maxProducts = 16

// parseProducts returns the products of a User-Agent with their versions. It skips
// comments, which are in parentheses. If a product occurs twice, the last one counts: rclone
// sends "APN/1.0 rclone/1.0 rclone/1.68.2", where the first belongs to Microsoft's Partner
// Network.
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
		products[strings.ToLower(name)] = version
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
