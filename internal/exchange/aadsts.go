package exchange

import (
	"fmt"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// hint names the advice that goes with a code; advise fills it in.
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

// ruling says what one AADSTS code means.
type ruling struct {
	code   int
	kind   Kind
	retry  Retry
	hint   hint
	detail string
}

// rulings is the one place that knows AADSTS codes. A code is of a permanent kind only if
// waiting cannot help: a permanent kind is answered with 400, after which old clients never
// ask again. Codes are documented at
// https://learn.microsoft.com/entra/identity-platform/reference-error-codes
var rulings = [...]ruling{
	// No federated credential matches, or not yet: a credential that was just added takes
	// minutes to reach all of Entra, and answers differ until then.
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
	// registration somebody creates it, perhaps a moment ago.
	{7000229, Unavailable, RetrySoon, hintServicePrincipal, "the application has no service principal in the tenant"},

	// The federated token itself was refused: the kubelet may just have renewed it.
	{700024, FederatedTokenUnusable, RetryReread, hintClock, "entra finds the federated token outside of its time range"},
	{700027, FederatedTokenUnusable, RetryReread, hintIssuer, "entra finds the federated token's signature invalid"},
	{7000272, FederatedTokenUnusable, RetryReread, hintIssuer, "entra finds the federated token signed with a key that its issuer does not publish"},
	{50013, FederatedTokenUnusable, RetryReread, hintIssuer, "entra finds the federated token invalid"},
	{50027, FederatedTokenUnusable, RetryReread, hintIssuer, "entra finds the federated token malformed"},

	// Permanent until a person acts.
	{700016, UnknownIdentity, RetryNever, hintClientID, "the tenant has no application with this client ID"},
	{700038, UnknownIdentity, RetryNever, hintClientID, "the client ID is not a valid application identifier"},
	{500011, InvalidResource, RetryNever, hintResource, "the tenant does not know the resource"},
	{500014, InvalidResource, RetryNever, hintResource, "the resource is disabled in the tenant"},
	{650057, InvalidResource, RetryNever, hintResource, "the resource is not one that the application may ask for"},
	{70011, InvalidScope, RetryNever, hintResource, "the resource does not make a valid scope"},
	{1002012, InvalidScope, RetryNever, hintResource, "the resource does not make a valid scope"},
	{50105, UnauthorizedClient, RetryNever, hintAccess, "the application is not assigned to a role of the resource"},
	{501051, UnauthorizedClient, RetryNever, hintAccess, "the application is not assigned to a role of the resource"},
	{53003, UnauthorizedClient, RetryNever, hintAccess, "a conditional access policy blocks the application"},
	{7000112, UnauthorizedClient, RetryNever, hintAccess, "the application is disabled in the tenant"},
	{700021, UnauthorizedClient, RetryNever, hintClientID, "the assertion names another application"},
	{700222, UnauthorizedClient, RetryNever, hintForeignToken, "entra takes no token of its own as a federated token"},
	{90002, InvalidTenant, RetryNever, hintTenant, "entra does not know the tenant"},
	{90019, InvalidTenant, RetryNever, hintTenant, "the request names no tenant"},
	{900021, InvalidTenant, RetryNever, hintTenant, "the tenant is not a valid identifier"},
	{900023, InvalidTenant, RetryNever, hintTenant, "the tenant is not a valid identifier"},
	{90038, InvalidTenant, RetryNever, hintTenant, "the tenant belongs to another cloud"},

	// Entra throttles, or has a fault of its own.
	{50196, Throttled, RetryNever, hintNone, "entra sees the same request too often"},
	{90055, Throttled, RetryNever, hintNone, "entra throttles the tenant"},
	{90006, Unavailable, RetrySoon, hintNone, "entra has a fault of its own"},
	{90012, Unavailable, RetrySoon, hintNone, "entra took too long over the request"},
	{90024, Unavailable, RetrySoon, hintNone, "entra has a fault of its own"},
	{90033, Unavailable, RetrySoon, hintNone, "entra has a fault of its own"},
}

// rulingOn returns the ruling on the first of the codes that has one.
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

// advise returns the text of the hint. It makes the claims that it quotes safe to paste: a
// cluster's users choose the names in them, and an operator runs the command.
func (h hint) advise(clientID, resource string, token FederatedToken) string {
	clientID, resource = shellSafe(clientID), shellSafe(resource)
	issuer, subject := shellSafe(token.Issuer), shellSafe(token.Subject)
	switch h {
	case hintCredential:
		return credentialCommands(clientID, issuer, subject, shellSafe(strings.Join(token.Audiences, " ")))
	case hintIssuer:
		const needed = "the issuer's documents must be readable from the internet"
		if !strings.HasPrefix(issuer, "https://") { // curl would take a leading dash for an option
			return needed + ", at its https:// address"
		}
		return fmt.Sprintf(needed+": curl '%s/.well-known/openid-configuration'", strings.TrimSuffix(issuer, "/"))
	case hintClock:
		return "compare the node's and the cluster's clocks, and see that the kubelet renews the token file"
	case hintClientID:
		return fmt.Sprintf("check %s, the client_id asked for, and %s: az ad sp show --id '%s'", azure.EnvClientID, azure.EnvTenantID, clientID)
	case hintResource:
		return fmt.Sprintf("check how the application spells its resource: '%s'", resource)
	case hintTenant:
		return "check " + azure.EnvTenantID + ", and " + azure.EnvAuthorityHost + " for the cloud that it is in"
	case hintAccess:
		return fmt.Sprintf("see why in Entra's service principal sign-in log, by the trace ID: az ad sp show --id '%s'", clientID)
	case hintForeignToken:
		return azure.EnvFederatedTokenFile + " must name a service-account token of the cluster"
	case hintServicePrincipal:
		return fmt.Sprintf("az ad sp create --id '%s'; one that was just created takes a few minutes", clientID)
	case hintAuthority:
		return "check " + azure.EnvAuthorityHost + ", for the cloud that the tenant is in, and who answers there"
	case hintBindingCA:
		return azure.EnvCAFile + " or " + azure.EnvCAData + " has to hold the authority of the token proxy's certificate; --ca-file counts only where neither is set"
	case hintBindingName:
		return azure.EnvSNIName + ", or without it the host of " + azure.EnvTokenProxy + ", has to be a name in the token proxy's certificate"
	case hintProxyCredentials:
		return "put the HTTP proxy's credentials into HTTPS_PROXY (http://USER:PASSWORD@HOST:PORT), or go past it: NO_PROXY=HOST"
	case hintProxyRules:
		return "have the HTTP proxy let CONNECT through to Entra's host at port 443, or go past it: NO_PROXY=HOST"
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
		"; one that was just added takes a few minutes",
		issuer, subject, audience, clientID, issuer, subject, audience)
}
