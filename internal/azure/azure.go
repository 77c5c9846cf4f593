// Package azure has a type and one parser for each of Azure's identifiers, and constants for
// names and defaults. Programs parse an identifier once, where they read flags, variables,
// annotations and requests. A value of one of these types is valid, and no other package
// checks it again.
//
//	id, err := azure.ParseClientID("6C0AC4E6-9B6D-4D2A-8D5A-6F1F3A1F9B10")
//	host, err := azure.ParseAuthorityHost("https://login.microsoftonline.com")
//
// The package imports the standard library only, so that every package may import it.
//
// # Security considerations
//
// The parsed values decide which identity's token is requested, and where the pod's
// credential is sent. The parsers accept ASCII only, and fold the case of ASCII letters only.
// An accepted value has no white space, no control characters and no quotes, so it cannot
// add a second scope, extend the path of a URL, or break out of a log line.
//
// An [Error] quotes the refused value, shortened, except for URLs: a URL may contain a
// password.
package azure

import "strconv"

// The environment variables of workload identity, as azure-workload-identity's webhook
// names them.
const (
	EnvClientID           = "AZURE_CLIENT_ID"
	EnvTenantID           = "AZURE_TENANT_ID"
	EnvFederatedTokenFile = "AZURE_FEDERATED_TOKEN_FILE"
	EnvAuthorityHost      = "AZURE_AUTHORITY_HOST"

	// The variables of identity bindings.
	EnvTokenProxy = "AZURE_KUBERNETES_TOKEN_PROXY"
	EnvSNIName    = "AZURE_KUBERNETES_SNI_NAME"
	EnvCAFile     = "AZURE_KUBERNETES_CA_FILE"
	EnvCAData     = "AZURE_KUBERNETES_CA_DATA"

	// EnvIMDSHost makes some SDKs request tokens from this URL instead of the metadata address.
	EnvIMDSHost = "AZURE_POD_IDENTITY_AUTHORITY_HOST"
)

const (
	// Audience is the audience that Entra expects in a federated token. National clouds add
	// a suffix.
	Audience = "api://AzureADTokenExchange"

	// BindingAudience is the audience that AKS's token proxy expects in a federated token, for
	// pods with an identity binding.
	BindingAudience = "api://AKSIdentityBinding"

	// MetadataIP and MetadataPort are the address of the instance metadata service (IMDS).
	MetadataIP   = "169.254.169.254"
	MetadataPort = 80

	// ProxyPort is the proxy's default port on 127.0.0.1. ProxyID is the default UID and GID
	// of the proxy, which the redirect exempts. Both are the same in azure-workload-identity.
	ProxyPort = 8000
	ProxyID   = 1501

	// RedirectProof is an address of the loopback device that the native backend and the CNI
	// plugin redirect to the proxy, together with the metadata address, and for every user. With
	// it the proxy, which the redirect exempts, can prove that the rules are there. Without them
	// the kernel refuses the connection at once, and nothing leaves the pod.
	RedirectProof = "127.254.169.254:80"
)

// Error describes what is wrong with a value, and how to fix it.
type Error struct {
	value  string
	secret bool // there is no value: it may contain a password
	reason string
}

// Invalid returns an [*Error] that quotes value. The reason begins with a verb, such as
// "must be true or false".
func Invalid(value, reason string) error { return &Error{value: value, reason: reason} }

// Secret returns an [*Error] that does not quote the value, which may contain a secret.
func Secret(reason string) error { return &Error{secret: true, reason: reason} }

// maxQuoted is how many bytes of a value an error repeats.
const maxQuoted = 100

// Error returns one line, such as `"70000": must be between 1 and 65535`. The caller puts the
// name of the flag, variable or annotation before it.
func (e *Error) Error() string {
	switch {
	case e.secret:
		return e.reason
	case len(e.value) > maxQuoted:
		return strconv.Quote(e.value[:maxQuoted]+"…") + ": " + e.reason
	}
	return strconv.Quote(e.value) + ": " + e.reason
}
