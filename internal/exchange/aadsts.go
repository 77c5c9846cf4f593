package exchange

import (
	"fmt"
	"slices"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// hint identifies the advice for a failure. advise returns its text.
type hint int

const (
	hintNone hint = iota
	hintCredential
	hintCase
	hintIssuer
	hintClock
	hintClientID
	hintResource
	hintTenant
	hintAccess
	hintForeignToken
	hintPolicy
	hintPublicClient
	hintServicePrincipal
	hintRequest
	hintRestriction
	hintUnlisted
	hintAuthority
	hintBindingCA
	hintBindingName
	hintBinding
	hintBindingAccess
	hintBindingToken
	hintBindingServer
	hintUnbound
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

// rulings is the table of AADSTS codes: those of client credentials, client assertions and
// federated credentials, and those of the tenant and the resource. It has none for users,
// devices, client secrets or other grants, which no request of this package involves. The kind
// of a code is permanent only if waiting cannot help: a permanent failure is answered with 400,
// after which old clients never retry. The codes are documented at
// https://learn.microsoft.com/entra/identity-platform/reference-error-codes and, for federated
// credentials, in the troubleshooting guides of Azure Pipelines and azure-workload-identity.
// Those that are documented nowhere are from public bug reports that quote Entra's text.
var rulings = [...]ruling{
	// No federated credential matches, or not yet: it takes minutes until a new credential
	// has been replicated to all of Entra, and responses differ until then.
	{70021, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token"},
	{70025, FederationMismatch, RetrySoon, hintCredential, "the identity has no federated credential"},
	{700026, FederationMismatch, RetrySoon, hintCredential, "the application has no credential"},
	{7000226, FederationMismatch, RetrySoon, hintCredential, "the application has no federated credential"},
	{700211, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token's issuer"},
	{7002111, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token's issuer"},
	{700212, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token's audience"},
	{7002121, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token's audience"},
	{700214, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token's audience"},
	{700213, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token's subject"},
	{7002131, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token's subject"},
	{7002203, FederationMismatch, RetrySoon, hintCredential, "no federated credential matches the federated token's subject"},
	{7002138, FederationMismatch, RetrySoon, hintCase, "the subject of the federated credential differs in case from the federated token's"},

	// The credential has an expression (a flexible federated credential) that Entra does not
	// evaluate for this issuer or identity.
	{700233, FederationMismatch, RetryNever, hintCredential, "the expression of the federated credential is invalid"},
	{700234, FederationMismatch, RetryNever, hintCredential, "the expression of the federated credential cannot be evaluated"},
	{700235, FederationMismatch, RetryNever, hintCredential, "the identity may not have a federated credential with an expression"},
	{700237, FederationMismatch, RetryNever, hintCredential, "the expression of the federated credential is not allowed"},
	{7002241, FederationMismatch, RetryNever, hintCredential, "the issuer may not have a federated credential with an expression"},

	// Entra could not fetch the issuer's discovery document or keys.
	{90061, IssuerUnusable, RetrySoon, hintIssuer, "entra cannot reach the federated token's issuer"},
	{50166, IssuerUnusable, RetrySoon, hintIssuer, "entra cannot reach the federated token's issuer"},
	{501661, IssuerUnusable, RetrySoon, hintIssuer, "entra cannot reach the federated token's issuer"},
	{900612, IssuerUnusable, RetrySoon, hintIssuer, "entra cannot read the signing keys of the federated token's issuer"},

	// Managed identities have a service principal from the start. For an application
	// registration a person creates it, perhaps a moment ago.
	{7000229, Refused, RetrySoon, hintServicePrincipal, "the application has no service principal in the tenant"},

	// Entra refused the federated token: the kubelet may have renewed it just now.
	{700024, FederatedTokenUnusable, RetryReread, hintClock, "entra rejects the federated token: it has expired or is not valid yet"},
	{500133, FederatedTokenUnusable, RetryReread, hintClock, "entra rejects the federated token: it has expired or is not valid yet"},
	{700027, FederatedTokenUnusable, RetryReread, hintIssuer, "entra rejects the federated token: its signature is invalid"},
	{50006, FederatedTokenUnusable, RetryReread, hintIssuer, "entra rejects the federated token: its signature is invalid"},
	{50012, FederatedTokenUnusable, RetryReread, hintIssuer, "entra rejects the federated token: its signature or certificate is invalid"},
	{900384, FederatedTokenUnusable, RetryReread, hintIssuer, "entra rejects the federated token: its signature is invalid"},
	{7000272, FederatedTokenUnusable, RetryReread, hintIssuer, "entra rejects the federated token: it is signed with a key that its issuer does not publish"},
	{50013, FederatedTokenUnusable, RetryReread, hintIssuer, "entra rejects the federated token as invalid"},
	{50027, FederatedTokenUnusable, RetryReread, hintIssuer, "entra rejects the federated token as malformed"},

	// Permanent until a person changes the configuration.
	{700016, UnknownIdentity, RetryNever, hintClientID, "the tenant has no application with this client ID"},
	{700011, UnknownIdentity, RetryNever, hintClientID, "the tenant has no application with this client ID"},
	{70001, UnknownIdentity, RetryNever, hintClientID, "the tenant has no application with this client ID, or it is disabled"},
	{700038, UnknownIdentity, RetryNever, hintClientID, "the client ID is not a valid application identifier"},
	{500011, InvalidResource, RetryNever, hintResource, "the tenant does not know the resource"},
	{50001, InvalidResource, RetryNever, hintResource, "the tenant does not know the resource, or it is disabled"},
	{500014, InvalidResource, RetryNever, hintResource, "the resource is disabled in the tenant"},
	{650052, InvalidResource, RetryNever, hintResource, "the tenant has no subscription to the resource"},
	{650054, InvalidResource, RetryNever, hintResource, "the resource has been removed from the tenant"},
	{650057, InvalidResource, RetryNever, hintResource, "the application may not request the resource"},
	{90009, InvalidResource, RetryNever, hintResource, "the application requests a token for itself: the resource must be its client ID"},
	{70011, InvalidScope, RetryNever, hintResource, "the resource does not make a valid scope"},
	{28002, InvalidScope, RetryNever, hintResource, "the resource does not make a valid scope"},
	{700022, InvalidScope, RetryNever, hintResource, "the scope names more than one resource"},
	{1002012, InvalidScope, RetryNever, hintResource, "the resource does not make a valid scope"},
	{50105, UnauthorizedClient, RetryNever, hintAccess, "the application is not assigned to a role of the resource"},
	{501051, UnauthorizedClient, RetryNever, hintAccess, "the application is not assigned to a role of the resource"},
	{53003, UnauthorizedClient, RetryNever, hintAccess, "a conditional access policy blocks the application"},
	{530032, UnauthorizedClient, RetryNever, hintAccess, "a security policy of the tenant blocks the application"},
	{7000112, UnauthorizedClient, RetryNever, hintAccess, "the application is disabled in the tenant"},
	{5000224, UnauthorizedClient, RetryNever, hintAccess, "the tenant is blocked"},
	{5000225, UnauthorizedClient, RetryNever, hintAccess, "the tenant is blocked because it was not used"},
	{5000229, UnauthorizedClient, RetryNever, hintAccess, "the tenant is blocked"},
	{700025, UnauthorizedClient, RetryNever, hintPublicClient, "the application is a public client, which may not have credentials"},
	{100007, UnauthorizedClient, RetryNever, hintAuthority, "a regional host of entra does not serve the application"},

	// A policy of the tenant, or of the federated credential's issuer.
	{700223, UnauthorizedClient, RetryNever, hintPolicy, "the tenant does not allow federated credentials"},
	{700238, UnauthorizedClient, RetryNever, hintPolicy, "the tenant does not allow federated credentials of this issuer"},
	{7002381, UnauthorizedClient, RetryNever, hintPolicy, "the tenant requires a claim that the federated token does not have"},
	{70052, UnauthorizedClient, RetryNever, hintPolicy, "the tenant does not allow federated credentials of this issuer for multi-tenant applications"},

	// The assertion is not a token of the cluster.
	{700021, UnauthorizedClient, RetryNever, hintClientID, "the assertion names another application"},
	{700023, UnauthorizedClient, RetryNever, hintForeignToken, "entra takes the federated token for an assertion that the application signed: its audience is wrong"},
	{50048, UnauthorizedClient, RetryNever, hintForeignToken, "entra takes the federated token for an assertion that the application signed: its subject is not its issuer"},
	{700030, UnauthorizedClient, RetryNever, hintForeignToken, "entra does not accept the certificate in the federated token"},
	{7000213, UnauthorizedClient, RetryNever, hintForeignToken, "entra does not accept the certificates in the federated token"},
	{7000214, UnauthorizedClient, RetryNever, hintForeignToken, "entra does not accept the certificates in the federated token"},
	{700222, UnauthorizedClient, RetryNever, hintForeignToken, "entra does not accept its own tokens as federated tokens"},
	{700226, UnauthorizedClient, RetryNever, hintForeignToken, "entra accepts its own tokens as federated tokens only for managed identities"},
	{700227, UnauthorizedClient, RetryNever, hintForeignToken, "entra does not accept its own tokens for this audience as federated tokens"},
	{700229, UnauthorizedClient, RetryNever, hintForeignToken, "entra does not accept its own tokens for users as federated tokens"},
	{700231, UnauthorizedClient, RetryNever, hintForeignToken, "entra does not accept tokens that it granted for a federated token as federated tokens"},
	{700236, UnauthorizedClient, RetryNever, hintForeignToken, "entra does not accept its tokens of another tenant as federated tokens"},

	{90002, InvalidTenant, RetryNever, hintTenant, "entra does not know the tenant"},
	{90019, InvalidTenant, RetryNever, hintTenant, "the request names no tenant"},
	{50059, InvalidTenant, RetryNever, hintTenant, "the request names no tenant"},
	{50128, InvalidTenant, RetryNever, hintTenant, "the tenant is not a valid domain"},
	{900021, InvalidTenant, RetryNever, hintTenant, "the tenant is not a valid identifier"},
	{900023, InvalidTenant, RetryNever, hintTenant, "the tenant is not a valid identifier"},
	{90038, InvalidTenant, RetryNever, hintTenant, "the tenant belongs to another cloud"},
	{90051, InvalidTenant, RetryNever, hintTenant, "the tenant belongs to another cloud"},
	{900382, InvalidTenant, RetryNever, hintTenant, "the tenant belongs to another cloud"},
	{900432, InvalidTenant, RetryNever, hintTenant, "the tenant belongs to another cloud"},
	{900439, InvalidTenant, RetryNever, hintTenant, "the tenant belongs to another cloud"},
	{900440, InvalidTenant, RetryNever, hintTenant, "the tenant belongs to another cloud"},

	// An HTTP proxy adds a header that restricts tenants.
	{50002, UnauthorizedClient, RetryNever, hintRestriction, "an HTTP proxy does not allow the tenant"},
	{500021, UnauthorizedClient, RetryNever, hintRestriction, "an HTTP proxy does not allow the tenant"},
	{500022, UnauthorizedClient, RetryNever, hintRestriction, "an HTTP proxy does not allow the tenant"},

	// The requests of this package have all of this, so something may have changed one.
	{7000216, Refused, RetryOnce, hintRequest, "the request arrived without the federated token"},
	{7000218, Refused, RetryOnce, hintRequest, "the request arrived without the federated token"},
	{90014, Refused, RetryOnce, hintRequest, "the request arrived without a required parameter"},
	{900144, Refused, RetryOnce, hintRequest, "the request arrived without a required parameter"},
	{900561, Refused, RetryOnce, hintRequest, "the request arrived with another method than POST"},
	{90004, Refused, RetryOnce, hintRequest, "the request arrived malformed"},
	{90023, Refused, RetryOnce, hintRequest, "the request arrived malformed"},
	{9002313, Refused, RetryOnce, hintRequest, "the request arrived malformed"},
	{90100, Refused, RetryOnce, hintRequest, "the request arrived with an invalid parameter"},
	{90121, Refused, RetryOnce, hintRequest, "the request arrived empty"},
	{1002016, Refused, RetryNever, hintRequest, "the request arrived with a version of TLS that entra does not accept"},

	// Entra throttles, or has an internal error.
	{50196, Throttled, RetryNever, hintNone, "entra received the same request too often"},
	{90055, Throttled, RetryNever, hintNone, "entra throttles the tenant"},
	{50000, Unavailable, RetrySoon, hintNone, "entra has an internal error"},
	{50033, Unavailable, RetrySoon, hintNone, "entra has an internal error"},
	{90006, Unavailable, RetrySoon, hintNone, "entra has an internal error"},
	{90012, Unavailable, RetrySoon, hintNone, "entra did not process the request in time"},
	{90024, Unavailable, RetrySoon, hintNone, "entra has an internal error"},
	{90033, Unavailable, RetrySoon, hintNone, "entra has an internal error"},
	{90036, Unavailable, RetryOnce, hintNone, "entra has an internal error"},
	{90090, Unavailable, RetrySoon, hintNone, "entra has an internal error"},
	{90091, Unavailable, RetrySoon, hintNone, "entra has an internal error"},
	{90092, Unavailable, RetryOnce, hintNone, "entra has an internal error"},
}

// families has the codes to which Entra appends a digit for variants of the same failure, such
// as 7002138 to 700213 and 501661 to 50166. This is no general rule: 7000222 (a client secret)
// is no variant of 700022 (a scope).
var families = [...]int{50166, 90061, 700211, 700212, 700213}

// rulingOn returns the ruling for the first known code, or for the first variant of one.
func rulingOn(codes []int) (ruling, bool) {
	for _, code := range codes {
		if r, ok := rulingFor(code); ok {
			return r, true
		}
	}
	for _, code := range codes {
		if slices.Contains(families[:], code/10) {
			r, ok := rulingFor(code / 10)
			r.code = code
			return r, ok
		}
	}
	return ruling{}, false
}

func rulingFor(code int) (ruling, bool) {
	i := slices.IndexFunc(rulings[:], func(r ruling) bool { return r.code == code })
	if i < 0 {
		return ruling{}, false
	}
	return rulings[i], true
}

// advise returns the text of the hint. It makes the claims that it quotes safe to paste into a
// shell: the users of a cluster choose the names in them, and an operator runs the command.
func (h hint) advise(code int, clientID, resource string, token FederatedToken) string {
	clientID, resource = shellSafe(clientID), shellSafe(resource)
	issuer, subject := shellSafe(token.Issuer), shellSafe(token.Subject)
	audience := shellSafe(strings.Join(token.Audiences, " "))
	switch h {
	case hintCredential:
		return credentialCommands("create", clientID, issuer, subject, audience)
	case hintCase:
		return credentialCommands("update", clientID, issuer, subject, audience)
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
	case hintPolicy:
		return fmt.Sprintf("ask an administrator of the tenant to allow federated credentials of the issuer '%s'", issuer)
	case hintPublicClient:
		return fmt.Sprintf("az ad app update --id '%s' --is-fallback-public-client false", clientID)
	case hintServicePrincipal:
		return fmt.Sprintf("az ad sp create --id '%s'; a new service principal takes a few minutes to work", clientID)
	case hintRequest:
		return "something between the pod and Entra may change requests: check the HTTP proxy, the firewall and " + azure.EnvTokenProxy
	case hintRestriction:
		return "add the tenant to the header Restrict-Access-To-Tenants that the HTTP proxy sets, or bypass it with NO_PROXY=HOST"
	case hintUnlisted:
		return fmt.Sprintf("look up the code: https://login.microsoftonline.com/error?code=%d; the trace ID finds the request in Entra's service principal sign-in log", code)
	case hintAuthority:
		return "check that " + azure.EnvAuthorityHost + " is the one of the tenant's cloud, and which server answers there"
	case hintBindingCA:
		return azure.EnvCAFile + " or " + azure.EnvCAData + " must contain the certificate authority of the token proxy; --ca-file is used only if neither is set"
	case hintBindingName:
		return azure.EnvSNIName + ", or without it the host of " + azure.EnvTokenProxy + ", must be a name in the token proxy's certificate"
	case hintBinding:
		return bindingCommand(clientID)
	case hintBindingAccess:
		return accessCommand(clientID, subject)
	case hintBindingToken:
		return fmt.Sprintf("its audience must be %s, and is '%s'; check the projected volume of the pod, and the clocks of the node and the cluster", azure.BindingAudience, audience)
	case hintBindingServer:
		return "check " + azure.EnvTokenProxy + " and " + azure.EnvSNIName + ": without the name in the latter, the API server of the cluster answers instead of the token proxy"
	case hintUnbound:
		return unboundAdvice
	case hintProxyCredentials:
		return "set HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT, or bypass the HTTP proxy with NO_PROXY=HOST"
	case hintProxyRules:
		return "allow CONNECT to Entra's host, port 443, in the HTTP proxy, or bypass it with NO_PROXY=HOST"
	}
	return ""
}

// credentialCommands returns the commands that create the missing federated credential, or update
// one: for a managed identity, and for an application registration.
func credentialCommands(verb, clientID, issuer, subject, audience string) string {
	app, what := "", "new"
	if verb == "update" {
		app, what = " --federated-credential-id NAME", "changed"
	}
	return fmt.Sprintf("az identity federated-credential %[1]s --name NAME --identity-name IDENTITY --resource-group GROUP"+
		" --issuer '%[3]s' --subject '%[4]s' --audiences '%[5]s'"+
		" (for an application registration: az ad app federated-credential %[1]s --id '%[2]s'%[6]s"+
		` --parameters '{"name":"NAME","issuer":"%[3]s","subject":"%[4]s","audiences":["%[5]s"]}')`+
		"; a %[7]s credential takes a few minutes to work",
		verb, clientID, issuer, subject, audience, app, what)
}
