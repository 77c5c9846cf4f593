package apiserver

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/entra"
)

// TestFederatedToken checks that the fake Entra accepts a token that the API server signed
// for a service account, and verifies it with the issuer's discovery document and keys.
func TestFederatedToken(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	namespace := newNamespace(ctx, t, restricted)
	running.Entra.AddApplication(entra.Application{ClientID: clientID, Credentials: []entra.FederatedCredential{
		{Issuer: cluster.Issuer, Subject: "system:serviceaccount:" + namespace + ":default"}}})
	for _, test := range []struct {
		audience string
		status   int
		code     string
	}{
		{entra.DefaultAudience, http.StatusOK, ""},
		{cluster.Issuer, http.StatusUnauthorized, "AADSTS700212"}, // the API server's default audience
	} {
		status, body := exchange(ctx, t, projectedToken(ctx, t, namespace, test.audience))
		if status != test.status || !strings.Contains(body, test.code) {
			t.Errorf("audience %s: status %d, %s; want %d %s", test.audience, status, body, test.status, test.code)
		}
	}
}

// projectedToken requests a token as the kubelet does for a projected volume.
func projectedToken(ctx context.Context, t *testing.T, namespace, audience string) string {
	t.Helper()
	seconds := int64(3600)
	answer, err := running.Client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, "default",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}, ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status.Token
}

// exchange sends a federated token to Entra's token endpoint, and returns the status and
// body of the response.
func exchange(ctx context.Context, t *testing.T, assertion string) (int, string) {
	t.Helper()
	form := url.Values{
		"client_id": {clientID}, "scope": {"https://vault.azure.net/.default"}, "grant_type": {"client_credentials"},
		"client_assertion": {assertion}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, running.Entra.TokenURL(), strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := running.Entra.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var body json.RawMessage
	if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(body)
}
