package exchange

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"

	msal "github.com/AzureAD/microsoft-authentication-library-for-go/apps/errors"

	"imds-oidc-proxy/internal/azure"
)

// peer is the server that answers token requests.
type peer struct {
	name    string // for errors
	binding bool   // it is the token proxy of an identity binding
}

// hintFor returns the advice for an answer of Entra. In an identity binding, the federated
// credential and its issuer are AKS's: no credential for the pod's service account can help.
func (p peer) hintFor(h hint) hint {
	if p.binding && (h == hintCredential || h == hintCase || h == hintIssuer) {
		return hintBinding
	}
	return h
}

// classifyOwn classifies an error response that the token proxy makes itself: one without an
// AADSTS code (ADR 0056). The token proxy verifies the federated token, and that the service account has the
// verb use-managed-identity for the client ID, before it requests a token of Entra
// (https://learn.microsoft.com/azure/aks/identity-bindings-concepts). AKS documents no format of
// its refusals. So the status decides, or the name of the permission.
func (e *Error) classifyOwn(call msal.CallErr, oauthError string, body []byte) {
	status := call.Resp.StatusCode
	const refused = "the token proxy "
	switch {
	case call.Req != nil && call.Req.Method == http.MethodGet:
		// The request for the discovery document has no federated token to refuse.
		e.Kind, e.Retry, e.hint, e.Detail = Unavailable, RetryNever, hintBindingServer, refused+"does not serve the discovery document"
	case status == http.StatusForbidden || namesPermission(body):
		e.Kind, e.Retry, e.hint, e.Detail = BindingMismatch, RetryOnce, hintBindingAccess, refused+"does not let the service account use the identity"
	case status == http.StatusUnauthorized:
		e.Kind, e.Retry, e.hint, e.Detail = FederatedTokenUnusable, RetryReread, hintBindingToken, refused+"does not accept the federated token"
	case status == http.StatusNotFound:
		e.Kind, e.Retry, e.hint, e.Detail = BindingMismatch, RetryOnce, hintBinding, refused+"finds no identity binding of the identity"
	default:
		e.Kind, e.Retry = byOAuthError(oauthError, e.Code)
		e.hint, e.Detail = hintBinding, refused+"refused the request"
	}
	e.Detail += fmt.Sprintf(" (status %d)", status)
}

// The permission of Kubernetes that a service account needs for an identity, whose client ID is
// the resource.
const (
	bindingVerb  = "use-managed-identity"
	bindingGroup = "cid.wi.aks.azure.com"
)

func namesPermission(body []byte) bool {
	return bytes.Contains(body, []byte(bindingVerb)) || bytes.Contains(body, []byte(bindingGroup))
}

// bindingCommand returns the command that creates the identity binding. AKS then creates the
// federated credential.
func bindingCommand(clientID string) string {
	return fmt.Sprintf("create the identity binding of the identity '%s' to the cluster, if az aks identity-binding list --resource-group GROUP --cluster-name CLUSTER"+
		" does not have it: az aks identity-binding create --resource-group GROUP --cluster-name CLUSTER --name NAME --managed-identity-resource-id ID"+
		"; this also creates the federated credential aks-identity-binding of the identity", clientID)
}

// accessCommand returns the command that lets the service account of the federated token use the
// identity.
func accessCommand(clientID, subject string) string {
	namespace, account := "NAMESPACE", "SERVICE_ACCOUNT"
	if name, ok := strings.CutPrefix(subject, "system:serviceaccount:"); ok {
		if n, a, ok := strings.Cut(name, ":"); ok {
			namespace, account = n, a
		}
	}
	return fmt.Sprintf(`echo '{"apiVersion":"v1","kind":"List","items":[`+
		`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"use-mi-%[1]s"},`+
		`"rules":[{"verbs":["`+bindingVerb+`"],"apiGroups":["`+bindingGroup+`"],"resources":["%[1]s"]}]},`+
		`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"use-mi-%[1]s:%[2]s:%[3]s"},`+
		`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"use-mi-%[1]s"},`+
		`"subjects":[{"kind":"ServiceAccount","namespace":"%[2]s","name":"%[3]s"}]}]}' | kubectl apply -f -`, clientID, namespace, account)
}

// unboundAdvice is the advice for a federated token for AKS's token proxy that was sent to Entra.
const unboundAdvice = "the federated token is for an identity binding (" + azure.BindingAudience + "), but " + azure.EnvTokenProxy +
	" is not set: AKS's webhook sets it in new pods with the label azure.workload.identity/use and the annotation" +
	" azure.workload.identity/use-identity-binding (kubectl --namespace kube-system get pods -l azure-workload-identity.io/system=true); otherwise remove the annotation"
