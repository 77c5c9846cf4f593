package azure

// The environment variables by which Azure App Service tells an SDK where to request tokens:
// the URL of the endpoint, and the value of the header that each request must have. The first
// pair belongs to version 2019-08-01 of the protocol, the second one to version 2017-09-01.
const (
	EnvIdentityEndpoint = "IDENTITY_ENDPOINT"
	EnvIdentityHeader   = "IDENTITY_HEADER"
	EnvMSIEndpoint      = "MSI_ENDPOINT"
	EnvMSISecret        = "MSI_SECRET"
)

// AppServicePath is the path of the proxy's endpoint for this protocol.
const AppServicePath = "/msi/token"

// AppServiceHeader is the value of the header that requests in the protocol of App Service
// must have. It is a secret.
type AppServiceHeader string

const (
	// minAppServiceHeader keeps out values that can be guessed, and a reference to another
	// variable that Kubernetes has not replaced, such as $(POD_UID).
	minAppServiceHeader = 16
	maxAppServiceHeader = 256
)

// ParseAppServiceHeader parses the value of the header. The error does not contain it.
func ParseAppServiceHeader(s string) (AppServiceHeader, error) {
	ok := minAppServiceHeader <= len(s) && len(s) <= maxAppServiceHeader
	for i := range len(s) {
		ok = ok && '!' <= s[i] && s[i] <= '~'
	}
	if !ok {
		return "", Secret("must have 16 to 256 characters, which are letters, digits and punctuation in ASCII, for example a random GUID")
	}
	return AppServiceHeader(s), nil
}
