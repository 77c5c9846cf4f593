package signs

import (
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// maxText is the size of the largest text that is searched: that of a ConfigMap.
const maxText = 1 << 20

// texts has what is in configuration files. Comments are removed before.
var texts = []pattern{
	{source: "IMDS204", match: re(`(?m)^serviceoperator\.azure\.com/credential-from\b`), certainty: Hint},
	{source: "IMDS207", match: re(`(?i)"?useManagedIdentityExtension"?\s*[:=]\s*"?true`), certainty: Certain,
		identity: re(`(?i)"?userAssignedIdentityID"?\s*[:=]\s*` + anID)},
	{source: "IMDS211", match: re(`"?AAD_LOGIN_METHOD"?\s*[:=]\s*"?msi\b`), certainty: Certain, identity: re(`"?AZURE_CLIENT_ID"?\s*[:=]\s*` + anID)},
	{source: "IMDS216", text: "remote_write azuread.managed_identity", certainty: Certain,
		match:    re(`(?m)^\s*(?:- )?azuread:\s*\n(?:\s+cloud:.*\n)?\s+managed_identity:`),
		identity: re(`managed_identity:\s*\n\s+client_id:\s*` + anID)},
	{source: "IMDS216", text: "azure_sd_configs authentication_method: ManagedIdentity", certainty: Certain,
		match: re(`authentication_method:\s*["']?ManagedIdentity`), also: re(`azure_sd_configs:`)},
	{source: "IMDS217", match: re(`(?m)^\s*(?:user_assigned_id:\s*["']?[^\s"'].*|msi_resource:\s*["']?[^\s"'].*)$`), text: "objstore type AZURE with user_assigned_id or msi_resource",
		also: re(`(?mi)^\s*(?:- )?type:\s*["']?azure\b`), certainty: Certain, identity: re(`user_assigned_id:\s*` + anID)},
	{source: "IMDS218", match: re(`(?m)^\s*use_managed_identity:\s*true`), without: re(`(?m)^\s*trace:`), certainty: Certain, identity: re(`user_assigned_id:\s*` + anID)},
	{source: "IMDS219", match: re(`(?m)^\s*use_managed_identity:\s*true`), also: re(`(?m)^\s*trace:`), certainty: Certain, identity: re(`user_assigned_id:\s*` + anID)},
	{source: "IMDS220", match: re(`(?m)^\s*user_assigned_id:\s*["']?[^\s"'].*$`), text: "blocks_storage azure.user_assigned_id",
		also: re(`(?m)^\s*(?:blocks_storage|alertmanager_storage|ruler_storage):`), certainty: Certain, identity: re(`user_assigned_id:\s*` + anID)},
	{source: "IMDS221", match: re(`(?m)^\s*managed_identity_enabled\s*=\s*true`), certainty: Certain, identity: re(`managed_identity_client_id\s*=\s*` + anID)},
	{source: "IMDS221", match: re(`"?authType"?:\s*["']?msi\b`), also: re(`azureCredentials`), certainty: Certain},
	{source: "IMDS223", match: re(`\bMsiTokenProvider\b`), certainty: Certain, identity: re(`oauth2\.client\.id[^\n=:]*(?:[:=]|</name>\s*<value>)\s*` + anID)},
	{source: "IMDS224", match: re(`(?m)^\s*use_msi\s*=\s*true`), without: re(`(?m)^\s*type\s*=\s*azureblob`), certainty: Certain},
	{source: "IMDS227", match: re(`(?i)Authentication\s*=\s*["']?Active Directory (?:MSI|Managed Identity)`), certainty: Certain, identity: re(`(?i)(?:User ?ID|UID)\s*=\s*` + anID)},
	{source: "IMDS228", match: re(`(?i)Authentication\s*=\s*["']?ActiveDirectory(?:MSI|ManagedIdentity)`), certainty: Certain, identity: re(`(?i)(?:msiClientId|User|UID)\s*=\s*` + anID)},
	{source: "IMDS229", match: re(`(?mi)^\s*auth_type\s+managed_identity`), certainty: Certain, identity: re(`(?mi)^\s*client_id\s+` + anID)},
	{source: "IMDS230", match: re(`managed_identity_client_id\b`), also: re(`(?i)kusto`), certainty: Certain, identity: re(`managed_identity_client_id\s*(?:=>|[:=])?\s*` + anID)},
	{source: "IMDS231", match: re(`(?m)^\s*azureauth[\w/]*:\s*\n\s+managed_identity:`), text: "azureauth managed_identity", certainty: Certain, identity: re(`managed_identity:\s*\n\s+client_id:\s*` + anID)},
	{source: "IMDS232", match: re(`seal\s+"azurekeyvault"`), without: re(`(?m)^\s*client_secret\s*=`), certainty: Certain, identity: re(`(?m)^\s*client_id\s*=\s*` + anID)},
	{source: "IMDS234", match: re(`(?i)azureManagedIdentityEnabled"?\s*[:=]\s*"?true`), certainty: Certain},
	{source: "IMDS235", match: re(`(?m)^\s*type:\s*["']?default_credentials\b`), certainty: Certain},
	{source: "IMDS237", match: re(`(?m)^\s*useSDKCreds:\s*true`), certainty: Certain},
	{source: "IMDS238", match: re(`(?m)^\s*mode:\s*["']?msi\b`), also: re(`(?m)^\s*azstorage:`), certainty: Certain, identity: re(`(?m)^\s*appid:\s*` + anID)},
	{source: "IMDS239", match: re(`(?m)^\s*use_msi\s*=\s*true`), also: re(`(?m)^\s*type\s*=\s*azureblob`), certainty: Certain, identity: re(`(?m)^\s*msi_client_id\s*=\s*` + anID)},
	{source: Setting, match: re(`(?i)managed-identity-enabled\s*[:=]\s*["']?true`), certainty: Certain, identity: re(`(?i)client-id\s*[:=]\s*` + anID)},
	{source: Setting, match: re(`169\.254\.169\.254(?::80)?/metadata/identity`), certainty: Certain, identity: re(`[?&]client_id=` + anID)},
}

// commands has what is in command lines and scripts.
var commands = []pattern{
	{source: "IMDS211", match: re(`\bkubelogin\b[^\n;|&]*\s(?:-l|--login)[ =]msi\b`), certainty: Certain, identity: re(`--client-id[ =]` + anID)},
	{source: "IMDS225", match: re(`\bazcopy\s+login\b[^\n;|&]*--identity\b`), certainty: Certain, identity: re(`--identity-client-id[ =]` + anID)},
	{source: "IMDS226", match: re(`\baz\s+login\b[^\n;|&]*\s(?:--identity|-i)\b`), certainty: Certain, identity: re(`\s(?:--client-id|--resource-id|--username|-u)[ =]` + anID)},
	{source: Setting, match: re(`(?i)\bConnect-AzAccount\b[^\n;|&]*\s-Identity\b`), certainty: Certain, identity: re(`(?i)-AccountId\s+` + anID)},
	{source: Setting, match: re(`\b(?:curl|wget|Invoke-RestMethod|Invoke-WebRequest)\b[^\n;|&]*169\.254\.169\.254`), text: "a request to 169.254.169.254", certainty: Certain, identity: re(`[?&]client_id=` + anID)},
}

// instance finds requests for instance metadata, which a sealed redirect refuses.
var instance = re(`169\.254\.169\.254(?::80)?/metadata/instance`)

// Text returns the signs in a configuration file or a script. Of a long text it searches the first
// mebibyte.
func Text(text string) []Sign {
	if len(text) > maxText {
		text = text[:maxText]
	}
	if !mayContain(text) {
		return nil
	}
	text = withoutComments(text)
	return Sort(append(findAll(texts, text), findAll(commands, text)...))
}

// words are parts of every expression of the tables, in lower case: a text without any of them is
// not searched, which is most of them.
var words = []string{"msi", "managed", "identity", "169.254", "azure", "user_assigned", "default_credentials", "usesdkcreds"}

func mayContain(text string) bool {
	lower := strings.ToLower(text)
	for _, word := range words {
		if strings.Contains(lower, word) {
			return true
		}
	}
	return false
}

// Command returns the signs in the command and the arguments of a container.
func Command(args []string) []Sign {
	line := strings.Join(args, " ")
	return Sort(append(findAll(commands, line), findAll(texts, line)...))
}

// NeedsInstance reports whether a text requests instance metadata from IMDS.
func NeedsInstance(text string) bool { return instance.MatchString(text) }

// withoutComments removes lines that begin with #, //, ; or "-- ".
func withoutComments(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, "//") || strings.HasPrefix(trimmed, ";") || strings.HasPrefix(trimmed, "-- ") {
			continue
		}
		kept.WriteString(line)
	}
	return kept.String()
}

// ClientIDOnly returns the sign of a container with a client ID and no other credential: the default
// chains of Azure's SDKs then ask IMDS for this identity.
func ClientIDOnly(value string) Sign {
	s := Sign{Source: ClientID, Text: azure.EnvClientID + " without another credential", Certainty: Likely}
	s.name(value)
	return s
}
