package signs

import (
	"regexp"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// variable is a row of the table of environment variables. An expression matches the whole name or
// value. A nil value means any value, also an unknown one.
type variable struct {
	row         string
	name, value *regexp.Regexp
	certainty   Certainty
}

func whole(expression string) *regexp.Regexp { return re(`(?i)^(?:` + expression + `)$`) }

const yes = `true|1|yes`

// variables has the variables with which a program asks IMDS, or another endpoint in its place. Some
// SDKs read names in upper case only; accepting any case costs nothing.
var variables = []variable{
	{"D6", whole(`MSI_ENDPOINT|MSI_SECRET|IDENTITY_ENDPOINT|IDENTITY_HEADER|IMDS_ENDPOINT|IDENTITY_SERVER_THUMBPRINT`), nil, Certain},
	{"D7", whole(azure.EnvIMDSHost), nil, Certain},
	{"C8", whole(`USE_MANAGED_IDENTITY_FOR_POD`), whole(yes), Certain},
	{"C11", whole(`AAD_LOGIN_METHOD`), whole(`msi`), Certain},
	{"C13", whole(`ARM_USE_MANAGED_IDENTITY_EXTENSION`), whole(yes), Certain},
	{"C21", whole(`GF_AZURE_MANAGED_IDENTITY_ENABLED`), whole(yes), Certain},
	{"C22", whole(`AIRFLOW_CONN_\w+`), re(`managed_identity_client_id`), Certain},
	{"C24", whole(`ARM_USE_MSI`), whole(yes), Certain},
	{"C24", whole(`ARM_MSI_ENDPOINT`), nil, Certain},
	{"C25", whole(`AZCOPY_AUTO_LOGIN_TYPE`), whole(`msi`), Certain},
	{"C39", whole(`RCLONE_AZUREBLOB_USE_MSI`), whole(yes), Certain},
	{"D8", whole(`USE_MSI|AZURE_STORAGE_USE_MSI|SPRING_CLOUD_AZURE_CREDENTIAL_MANAGED_IDENTITY_ENABLED`), whole(yes), Certain},
	{"D8", whole(`AzureServicesAuthConnectionString`), re(`(?i)^RunAs=App(;|$)`), Certain},
	{"D8", whole(`AZURE_TOKEN_CREDENTIALS`), whole(`ManagedIdentityCredential|prod`), Certain},
	{"D11", whole(`\w+__credential`), whole(`managedidentity`), Likely},
	{"D11", whole(`AzureWebJobsStorage__accountName`), nil, Likely},
	{"D12", re(`.`), re(`(?i)\.(?:vault|blob\.core|servicebus|database|documents|azurecr)\.(?:azure\.(?:net|com)|windows\.net|io)\b`), Hint},
}

// identities has the variables that name the identity for a row, by its client ID or resource ID.
// object has those that name it by its object ID.
var (
	identities = map[string]string{
		"ARM_CLIENT_ID": "C24", "ARM_USER_ASSIGNED_IDENTITY_ID": "C13", "AZCOPY_MSI_CLIENT_ID": "C25",
		"AZCOPY_MSI_RESOURCE_STRING": "C25", "RCLONE_AZUREBLOB_MSI_CLIENT_ID": "C39", "RCLONE_AZUREBLOB_MSI_MI_RES_ID": "C39",
		"GF_AZURE_MANAGED_IDENTITY_CLIENT_ID": "C21",
	}
	objects = map[string]string{"AZCOPY_MSI_OBJECT_ID": "C25", "RCLONE_AZUREBLOB_MSI_OBJECT_ID": "C39"}
)

// Env returns the signs of one environment variable. An empty value is one that is not known, such as
// that of a Secret.
func Env(name, value string) []Sign {
	var found []Sign
	for _, v := range variables {
		if v.name.MatchString(name) && (v.value == nil || v.value.MatchString(value)) {
			found = append(found, Sign{Row: v.row, Text: v.evidence(name, value), Certainty: v.certainty})
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
	if v.value != nil && v.value.FindString(value) == value && len(value) < 40 && v.row != "D12" {
		return name + "=" + value
	}
	return name
}

// Identity returns the sign's identity from the variables of its container, for the rows whose
// tools read it from a variable of their own.
func (s Sign) Identity(env map[string]string) Sign {
	for name, row := range identities {
		if row == s.Row && env[name] != "" && s.ClientID == "" && s.ResourceID == "" {
			s.name(env[name])
		}
	}
	for name, row := range objects {
		if object, err := azure.ParseObjectID(env[name]); err == nil && row == s.Row {
			s.ObjectID = object
		}
	}
	return s
}

// Other credentials of the default chains of Azure's SDKs, which they try before IMDS.
var otherCredentials = []string{
	"AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_USERNAME", azure.EnvFederatedTokenFile,
}

// secretNames matches variables with a key or a password, with which a program needs no token.
var secretNames = re(`(?i)(key|secret|password|pwd|sas|token|connection_?string)`)

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
		re(`(?i)\b(password|pwd)\s*=|[?&]sig=`).MatchString(value)
}
