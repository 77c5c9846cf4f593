package exchange

import (
	"fmt"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// hint identifies the advice for a failure. advise returns its text.
type hint int

const (
	hintNone hint = iota
	hintCredential
	hintIssuer
	hintClock
	hintClientID
	hintResource
	hintTenant
	hintAccess
	hintForeignToken
	hintServicePrincipal
	hintAuthority
	hintBindingCA
	hintBindingName
	hintProxyCredentials
	hintProxyRules
)

// ruling says what an AADSTS code means.
type ruling struct {
	code   int
	kind   Kind
	retry  Retry
	hint   hint
	detail string
}

// rulings is the table of AADSTS codes. The kind of a code is permanent only if waiting cannot
// help: a permanent failure is answered with 400, after which old clients never retry. The
// codes are documented at
// https://learn.microsoft.com/entra/identity-platform/reference-error-codes
var rulings = [...]ruling{
	// No federated credential matches, or not yet: it takes minutes until a new credential
	// has been replicated to all of Entra, and responses differ until then.
	{70021, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token"},
	{70025, FederationMismatch, RetrySoon, hintCredential, "the identity has no federated credential"},
	{700211, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token's issuer"},
	{700212, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token's audience"},
	{700213, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token's subject"},

	// Entra could not fetch the issuer's discovery document or keys.
	{90061, FederationMismatch, RetrySoon, hintIssuer, "entra cannot reach the federated token's issuer"},
	{50166, FederationMismatch, RetrySoon, hintIssuer, "entra cannot reach the federated token's issuer"},
	{900612, FederationMismatch, RetrySoon, hintIssuer, "entra cannot read the signing keys of the federated token's issuer"},

	// Managed identities have a service principal from the start. For an application
	// registration a person creates it, perhaps a moment ago.
	{7000229, Unavailable, RetrySoon, hintServicePrincipal, "the application has no service principal in the tenant"},

	// Entra refused the federated token: the kubelet may have renewed it just now.
	{700024, FederatedTokenUnusable, RetryReread, hintClock, "entra rejects the federated token: it has expired or is not valid yet"},
	{700027, FederatedTokenUnusable, RetryReread, hintIssuer, "entra rejects the federated token: its signature is invalid"},
	{7000272, FederatedTokenUnusable, RetryReread, hintIssuer, "entra rejects the federated token: it is signed with a key that its issuer does not publish"},
	{50013, FederatedTokenUnusable, RetryReread, hintIssuer, "entra rejects the federated token as invalid"},
	{50027, FederatedTokenUnusable, RetryReread, hintIssuer, "entra rejects the federated token as malformed"},

	// Permanent until a person changes the configuration.
	{700016, UnknownIdentity, RetryNever, hintClientID, "the tenant has no application with this client ID"},
	{700038, UnknownIdentity, RetryNever, hintClientID, "the client ID is not a valid application identifier"},
	{500011, InvalidResource, RetryNever, hintResource, "the tenant does not know the resource"},
	{500014, InvalidResource, RetryNever, hintResource, "the resource is disabled in the tenant"},
	{650057, InvalidResource, RetryNever, hintResource, "the application may not request the resource"},
	{70011, InvalidScope, RetryNever, hintResource, "the resource does not make a valid scope"},
	{1002012, InvalidScope, RetryNever, hintResource, "the resource does not make a valid scope"},
	{50105, UnauthorizedClient, RetryNever, hintAccess, "the application is not assigned to a role of the resource"},
	{501051, UnauthorizedClient, RetryNever, hintAccess, "the application is not assigned to a role of the resource"},
	{53003, UnauthorizedClient, RetryNever, hintAccess, "a conditional access policy blocks the application"},
	{7000112, UnauthorizedClient, RetryNever, hintAccess, "the application is disabled in the tenant"},
	{700021, UnauthorizedClient, RetryNever, hintClientID, "the assertion names another application"},
	{700222, UnauthorizedClient, RetryNever, hintForeignToken, "entra does not accept its own tokens as federated tokens"},
	{90002, InvalidTenant, RetryNever, hintTenant, "entra does not know the tenant"},
	{90019, InvalidTenant, RetryNever, hintTenant, "the request names no tenant"},
	{900021, InvalidTenant, RetryNever, hintTenant, "the tenant is not a valid identifier"},
	{900023, InvalidTenant, RetryNever, hintTenant, "the tenant is not a valid identifier"},
	{90038, InvalidTenant, RetryNever, hintTenant, "the tenant belongs to another cloud"},

	// Entra throttles, or has an internal error.
	{50196, Throttled, RetryNever, hintNone, "entra received the same request too often"},
	{90055, Throttled, RetryNever, hintNone, "entra throttles the tenant"},
	{90006, Unavailable, RetrySoon, hintNone, "entra has an internal error"},
	{90012, Unavailable, RetrySoon, hintNone, "entra did not process the request in time"},
	{90024, Unavailable, RetrySoon, hintNone, "entra has an internal error"},
	{90033, Unavailable, RetrySoon, hintNone, "entra has an internal error"},
}

// rulingOn returns the ruling for the first known code.
func rulingOn(codes []int) (ruling, bool) {
	for _, code := range codes {
		for _, r := range rulings {
			if r.code == code {
				return r, true
			}
		}
	}
	return ruling{}, false
}

// advise returns the text of the hint. It makes the claims that it quotes safe to paste into a
// shell: the users of a cluster choose the names in them, and an operator runs the command.
func (h hint) advise(clientID, resource string, token FederatedToken) string {
	clientID, resource = shellSafe(clientID), shellSafe(resource)
	issuer, subject := shellSafe(token.Issuer), shellSafe(token.Subject)
	switch h {
	case hintCredential:
		return credentialCommands(clientID, issuer, subject, shellSafe(strings.Join(token.Audiences, " ")))
	case hintIssuer:
		const needed = "the issuer's documents must be readable from the internet"
		if !strings.HasPrefix(issuer, "https://") { // curl takes a leading dash for an option
			return needed + ", at its https:// address"
		}
		return fmt.Sprintf(needed+": curl '%s/.well-known/openid-configuration'", strings.TrimSuffix(issuer, "/"))
	case hintClock:
		return "check the clocks of the node and the cluster, and that the kubelet renews the token file"
	case hintClientID:
		return fmt.Sprintf("check %s, the client_id of the request and %s: az ad sp show --id '%s'", azure.EnvClientID, azure.EnvTenantID, clientID)
	case hintResource:
		return fmt.Sprintf("check the spelling of the resource in the application: '%s'", resource)
	case hintTenant:
		return "check " + azure.EnvTenantID + ", and that " + azure.EnvAuthorityHost + " is the one of its cloud"
	case hintAccess:
		return fmt.Sprintf("look up the trace ID in Entra's service principal sign-in log for the reason: az ad sp show --id '%s'", clientID)
	case hintForeignToken:
		return azure.EnvFederatedTokenFile + " must name a service-account token of the cluster"
	case hintServicePrincipal:
		return fmt.Sprintf("az ad sp create --id '%s'; a new service principal takes a few minutes to work", clientID)
	case hintAuthority:
		return "check that " + azure.EnvAuthorityHost + " is the one of the tenant's cloud, and which server answers there"
	case hintBindingCA:
		return azure.EnvCAFile + " or " + azure.EnvCAData + " must contain the certificate authority of the token proxy; --ca-file is used only if neither is set"
	case hintBindingName:
		return azure.EnvSNIName + ", or without it the host of " + azure.EnvTokenProxy + ", must be a name in the token proxy's certificate"
	case hintProxyCredentials:
		return "set HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT, or bypass the HTTP proxy with NO_PROXY=HOST"
	case hintProxyRules:
		return "allow CONNECT to Entra's host, port 443, in the HTTP proxy, or bypass it with NO_PROXY=HOST"
	}
	return ""
}

// credentialCommands returns the command that adds the missing federated credential: for a
// managed identity, and for an application registration.
func credentialCommands(clientID, issuer, subject, audience string) string {
	return fmt.Sprintf("az identity federated-credential create --name NAME --identity-name IDENTITY --resource-group GROUP"+
		" --issuer '%s' --subject '%s' --audiences '%s'"+
		" (for an application registration: az ad app federated-credential create --id '%s'"+
		` --parameters '{"name":"NAME","issuer":"%s","subject":"%s","audiences":["%s"]}')`+
		"; a new credential takes a few minutes to work",
		issuer, subject, audience, clientID, issuer, subject, audience)
}
