package exchange_test

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/binding"
	"imds-oidc-proxy/test/kit/entra"
)

// boundPod returns a pod with an identity binding of the stand-in for AKS's token proxy.
// allowed says whether the service account may use the identity.
func boundPod(t *testing.T, keys *entra.Keys, allowed *bool) (*pod, *binding.Server) {
	t.Helper()
	const sni = "a1.ests.aks"
	idp, err := entra.New(entra.Config{Keys: keys, ServerNames: []string{sni, "kubernetes.default.svc"}})
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := binding.Start(binding.Config{
		Entra: idp, Certificate: idp.Certificate(), ServerName: sni, Path: "/prefix", Review: idp.ReviewFederatedToken,
		Allowed: func(_ context.Context, s, id string) (bool, error) {
			return *allowed && s == subject && id == clientID, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy.Close() })
	p := newPod(t, idp)
	p.cfg.Dial = dialLoopback
	p.cfg.Binding = exchange.Binding{TokenProxy: azure.TokenProxy(proxy.URL()), SNIName: sni, CAData: string(idp.CAPEM())}
	proxy.Bind(entra.Application{ClientID: clientID}) // Entra then has no credential for the pod's own token
	p.write(t, entra.Claims{Subject: subject, Audience: azure.BindingAudience})
	return p, proxy
}

// write writes a federated token with the claims.
func (p *pod) write(t *testing.T, c entra.Claims) {
	t.Helper()
	if err := p.token.Write(p.idp.SignFederatedToken(c)); err != nil {
		t.Fatal(err)
	}
}

// TestIdentityBinding: the token proxy gets the pod's token, and Entra gets another one.
func TestIdentityBinding(t *testing.T) {
	keys, allowed := entra.NewKeys(), true
	p, proxy := boundPod(t, keys, &allowed)
	if _, err := p.get(t, p.service(t)); err != nil {
		t.Fatal(err)
	}
	want := binding.Request{ServerName: p.cfg.Binding.SNIName, Path: "/prefix/" + p.idp.TenantID() + "/oauth2/v2.0/token", Subject: subject, ClientID: clientID, Status: 200}
	if got := proxy.Requests(); len(got) != 1 || got[0] != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestRefusalsOfTheTokenProxy: each refusal names what is missing, and the object or the command
// that fixes it. No text of the answer is quoted.
func TestRefusalsOfTheTokenProxy(t *testing.T) {
	keys := entra.NewKeys()
	for name, c := range map[string]struct {
		spoil  func(t *testing.T, p *pod, proxy *binding.Server, allowed *bool)
		kind   exchange.Kind
		detail string
		hints  []string
	}{
		"no permission": {func(_ *testing.T, _ *pod, _ *binding.Server, allowed *bool) { *allowed = false }, exchange.BindingMismatch,
			"the token proxy does not let the service account use the identity (status 403)",
			[]string{`"verbs":["use-managed-identity"],"apiGroups":["cid.wi.aks.azure.com"],"resources":["` + clientID + `"]`, `"namespace":"shop","name":"cart"`, "| kubectl apply -f -"}},
		"no permission, said otherwise": {func(_ *testing.T, p *pod, _ *binding.Server, _ *bool) {
			p.idp.FailAlways(entra.FaultStatus(400, "service account lacks use-managed-identity"))
		}, exchange.BindingMismatch, "the token proxy does not let the service account use the identity (status 400)", []string{"kubectl apply"}},
		"no binding": {func(_ *testing.T, _ *pod, proxy *binding.Server, _ *bool) { proxy.Unbind(clientID) }, exchange.BindingMismatch,
			"the token proxy finds no identity binding of the identity (status 404)",
			[]string{"az aks identity-binding create --resource-group GROUP --cluster-name CLUSTER --name NAME --managed-identity-resource-id ID", "'" + clientID + "'", "aks-identity-binding"}},
		"no credential": {func(_ *testing.T, p *pod, _ *binding.Server, _ *bool) {
			p.idp.AddApplication(entra.Application{ClientID: clientID})
		}, exchange.FederationMismatch, "the identity has no federated credential", []string{"az aks identity-binding create"}},
		"another credential": {func(_ *testing.T, p *pod, _ *binding.Server, _ *bool) {
			p.idp.AddApplication(entra.Application{ClientID: clientID, Credentials: []entra.FederatedCredential{{Subject: subject}}})
		}, exchange.FederationMismatch, "no federated credential matches the federated token's subject", []string{"az aks identity-binding create"}},
		"the issuer of AKS cannot be read": {func(_ *testing.T, p *pod, _ *binding.Server, _ *bool) {
			p.idp.FailAlways(entra.FaultAADSTS(50166))
		}, exchange.IssuerUnusable, "entra cannot reach the federated token's issuer", []string{"az aks identity-binding create"}},
		"a token for Entra": {func(t *testing.T, p *pod, _ *binding.Server, _ *bool) {
			p.write(t, entra.Claims{Subject: subject})
		}, exchange.FederatedTokenUnusable, "the token proxy does not accept the federated token (status 401)",
			[]string{"its audience must be api://AKSIdentityBinding, and is 'api://AzureADTokenExchange'"}},
		"no server name": {func(_ *testing.T, p *pod, _ *binding.Server, _ *bool) {
			p.cfg.Binding.SNIName = "kubernetes.default.svc"
		}, exchange.Unavailable, "the token proxy does not serve the discovery document (status 401)", []string{"AZURE_KUBERNETES_SNI_NAME", "the API server"}},
		"another path": {func(_ *testing.T, p *pod, _ *binding.Server, _ *bool) {
			p.cfg.Binding.TokenProxy = azure.TokenProxy(strings.TrimSuffix(string(p.cfg.Binding.TokenProxy), "/prefix"))
		}, exchange.Unavailable, "the token proxy does not serve the discovery document (status 404)", []string{"AZURE_KUBERNETES_TOKEN_PROXY"}},
		"another refusal": {func(_ *testing.T, p *pod, _ *binding.Server, _ *bool) {
			p.idp.FailAlways(entra.FaultStatus(400, "secret text"))
		}, exchange.Unavailable, "the token proxy refused the request (status 400)", []string{"az aks identity-binding"}},
		"a refusal in OAuth": {func(_ *testing.T, p *pod, _ *binding.Server, _ *bool) {
			p.idp.FailAlways(entra.FaultJSON(400, `{"error":"invalid_scope","error_description":"secret text"}`))
		}, exchange.InvalidScope, "the token proxy refused the request (status 400)", nil},
		"throttling": {func(_ *testing.T, p *pod, _ *binding.Server, _ *bool) {
			p.idp.FailAlways(entra.FaultStatus(429, ""))
		}, exchange.Throttled, "the token proxy throttles requests (status 429)", nil},
		"an outage": {func(_ *testing.T, p *pod, _ *binding.Server, _ *bool) {
			p.idp.FailAlways(entra.FaultHTML(503))
		}, exchange.Unavailable, "the token proxy answered with status 503", nil},
	} {
		t.Run(name, func(t *testing.T) {
			allowed := true
			p, proxy := boundPod(t, keys, &allowed)
			c.spoil(t, p, proxy, &allowed)
			e := wantKind(t, p.service(t).exchange(t.Context(), clientID, resource), c.kind)
			if e.Detail != c.detail || strings.Contains(e.Detail+e.Hint, "secret") {
				t.Errorf("got %q, want %q", e.Detail, c.detail)
			}
			for _, want := range c.hints {
				if !strings.Contains(e.Hint, want) {
					t.Errorf("the hint lacks %s: %s", want, e.Hint)
				}
			}
		})
	}
}

// TestUnboundToken: a token for the token proxy that is sent to Entra has its own hint, whose fix
// is not another credential.
func TestUnboundToken(t *testing.T) {
	p := startPod(t, entra.Config{})
	p.write(t, entra.Claims{Subject: subject, Audience: azure.BindingAudience})
	e := wantKind(t, p.service(t).exchange(t.Context(), clientID, resource), exchange.FederationMismatch)
	if e.Code != 700212 || !strings.Contains(e.Hint, "AZURE_KUBERNETES_TOKEN_PROXY is not set") || strings.Contains(e.Hint, "federated-credential") {
		t.Errorf("got %v, hint %q", e, e.Hint)
	}
}

// TestAccessCommandIsSafeToPaste: what kubectl gets is JSON with the claims of the token as
// strings, whatever they are, in one pair of quotes.
func TestAccessCommandIsSafeToPaste(t *testing.T) {
	keys := entra.NewKeys()
	for subject, want := range map[string]string{
		"system:serviceaccount:shop:cart": `"namespace":"shop","name":"cart"`,
		"somebody":                        `"namespace":"NAMESPACE","name":"SERVICE_ACCOUNT"`,
		"system:serviceaccount:x'; rm -rf ~; echo '`id`$(id)\"\\\n\x1b[2J:y": "rm -rf",
		"system:serviceaccount:" + strings.Repeat("x", 1000):                 "NAMESPACE",
	} {
		allowed := false
		p, _ := boundPod(t, keys, &allowed)
		p.write(t, entra.Claims{Subject: subject, Audience: azure.BindingAudience})
		e := wantKind(t, p.service(t).exchange(t.Context(), clientID, resource), exchange.BindingMismatch)
		parts := strings.Split(e.Hint, "'")
		if len(parts) != 3 || parts[0] != "echo " || parts[2] != " | kubectl apply -f -" || len(e.Hint) > 2048 {
			t.Fatalf("got %s", e.Hint)
		}
		var list struct{ Items []struct{ Kind string } }
		if err := json.Unmarshal([]byte(parts[1]), &list); err != nil || len(list.Items) != 2 || !strings.Contains(parts[1], want) || strings.ContainsAny(parts[1], "`$\\\n\x1b") {
			t.Errorf("%v: %s", err, parts[1])
		}
	}
}

// TestAuthoritiesInBothVariables: azure-workload-identity's webhook sets the path of a file that
// does not exist beside the content. A file that exists is a contradiction, as for azidentity.
func TestAuthoritiesInBothVariables(t *testing.T) {
	keys, allowed := entra.NewKeys(), true
	p, _ := boundPod(t, keys, &allowed)
	p.cfg.Binding.CAFile = t.TempDir() + "/ca.crt"
	if _, err := p.get(t, p.service(t)); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(p.cfg.Binding.CAFile, p.idp.CAPEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := exchange.New(p.cfg); err == nil || !strings.Contains(err.Error(), "must not both be set") {
		t.Errorf("got %v", err)
	}
}
