package signs

import (
	"regexp"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// variable is a row of the table of environment variables. An expression matches the whole name or
// value. A nil value means any value, also an unknown one.
type variable struct {
	source      string
	name, value *regexp.Regexp
	certainty   Certainty
}

func whole(expression string) *regexp.Regexp { return re(`(?i)^(?:` + expression + `)$`) }

const yes = `true|1|yes`

// variables has the variables with which a program asks IMDS, or another endpoint in its place. Some
// SDKs read names in upper case only; accepting any case costs nothing.
var variables = []variable{
	{OtherEndpoint, whole(`MSI_ENDPOINT|MSI_SECRET|IDENTITY_ENDPOINT|IDENTITY_HEADER|IMDS_ENDPOINT|IDENTITY_SERVER_THUMBPRINT`), nil, Certain},
	{OtherHost, whole(azure.EnvIMDSHost), nil, Certain},
	{"IMDS208", whole(`USE_MANAGED_IDENTITY_FOR_POD`), whole(yes), Certain},
	{"IMDS211", whole(`AAD_LOGIN_METHOD`), whole(`msi`), Certain},
	{"IMDS213", whole(`ARM_USE_MANAGED_IDENTITY_EXTENSION`), whole(yes), Certain},
	{"IMDS221", whole(`GF_AZURE_MANAGED_IDENTITY_ENABLED`), whole(yes), Certain},
	{"IMDS222", whole(`AIRFLOW_CONN_\w+`), re(`managed_identity_client_id`), Certain},
	{"IMDS224", whole(`ARM_USE_MSI`), whole(yes), Certain},
	{"IMDS224", whole(`ARM_MSI_ENDPOINT`), nil, Certain},
	{"IMDS225", whole(`AZCOPY_AUTO_LOGIN_TYPE`), whole(`msi`), Certain},
	{"IMDS239", whole(`RCLONE_AZUREBLOB_USE_MSI`), whole(yes), Certain},
	{Setting, whole(`USE_MSI|AZURE_STORAGE_USE_MSI|SPRING_CLOUD_AZURE_CREDENTIAL_MANAGED_IDENTITY_ENABLED`), whole(yes), Certain},
	{Setting, whole(`AzureServicesAuthConnectionString`), re(`(?i)^RunAs=App(;|$)`), Certain},
	{Setting, whole(`AZURE_TOKEN_CREDENTIALS`), whole(`ManagedIdentityCredential|prod`), Certain},
	{Setting, whole(`\w+__credential`), whole(`managedidentity`), Likely},
	{Setting, whole(`AzureWebJobsStorage__accountName`), nil, Likely},
	{Service, re(`.`), re(`(?i)\.(?:vault|blob\.core|servicebus|database|documents|azurecr)\.(?:azure\.(?:net|com)|windows\.net|io)\b`), Hint},
}

// identities has the variables that name the identity for a tool, by its client ID or resource ID.
// object has those that name it by its object ID.
var (
	identities = map[string]string{
		"ARM_CLIENT_ID": "IMDS224", "ARM_USER_ASSIGNED_IDENTITY_ID": "IMDS213", "AZCOPY_MSI_CLIENT_ID": "IMDS225",
		"AZCOPY_MSI_RESOURCE_STRING": "IMDS225", "RCLONE_AZUREBLOB_MSI_CLIENT_ID": "IMDS239", "RCLONE_AZUREBLOB_MSI_MI_RES_ID": "IMDS239",
		"GF_AZURE_MANAGED_IDENTITY_CLIENT_ID": "IMDS221",
	}
	objects = map[string]string{"AZCOPY_MSI_OBJECT_ID": "IMDS225", "RCLONE_AZUREBLOB_MSI_OBJECT_ID": "IMDS239"}
)

// Env returns the signs of one environment variable. An empty value is one that is not known, such as
// that of a Secret.
func Env(name, value string) []Sign {
	var found []Sign
	for _, v := range variables {
		if v.name.MatchString(name) && (v.value == nil || v.value.MatchString(value)) {
			found = append(found, Sign{Source: v.source, Text: v.evidence(name, value), Certainty: v.certainty})
		}
	}
	for _, s := range Text(value) {
		s.Text = name + ": " + s.Text
		found = append(found, s)
	}
	return found
}

// evidence returns the variable with its value if the table lists the value word by word. Another
// value may contain a secret.
func (v variable) evidence(name, value string) string {
	if v.value != nil && v.value.FindString(value) == value && len(value) < 40 && v.source != Service {
		return name + "=" + value
	}
	return name
}

// Identity returns the sign's identity from the variables of its container, for the tools
// that read it from a variable of their own.
func (s Sign) Identity(env map[string]string) Sign {
	for name, source := range identities {
		if source == s.Source && env[name] != "" && s.ClientID == "" && s.ResourceID == "" {
			s.name(env[name])
		}
	}
	for name, source := range objects {
		if object, err := azure.ParseObjectID(env[name]); err == nil && source == s.Source {
			s.ObjectID = object
		}
	}
	return s
}

// Other credentials of the default chains of Azure's SDKs, which they try before IMDS.
var otherCredentials = []string{
	"AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_USERNAME", azure.EnvFederatedTokenFile,
}

// secretNames matches variables with a key or a password, with which a program needs no token, and
// secretValues values that contain one.
var (
	secretNames  = re(`(?i)(key|secret|password|pwd|sas|token|connection_?string)`)
	secretValues = re(`(?i)\b(password|pwd)\s*=|[?&]sig=`)
)

// HasOtherCredential reports whether variables, with or without a known value, contain another
// credential than a managed identity.
func HasOtherCredential(has func(name string) bool) bool {
	for _, name := range otherCredentials {
		if has(name) {
			return true
		}
	}
	return false
}

// MaySecret reports whether a variable may contain a key or a password: by its name, or by a value
// such as a connection string.
func MaySecret(name, value string) bool {
	return secretNames.MatchString(name) || strings.Contains(value, "SharedAccessKey") || strings.Contains(value, "AccountKey=") ||
		secretValues.MatchString(value)
}
