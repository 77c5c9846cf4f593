package diagnose_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"imds-oidc-proxy/internal/diagnose"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
)

const (
	secret   = "bm90LWEtc2lnbmF0dXJl"
	clientID = "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"
	subject  = "system:serviceaccount:shop:cart"
)

// unsigned writes a federated token with the string secret as its signature, and returns
// the path.
func unsigned(t *testing.T, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	path := filepath.Join(t.TempDir(), "token")
	content := encode([]byte(`{"alg":"RS256","kid":"a-key"}`)) + "." + encode(payload) + "." + secret
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// unanswered returns the functions for a pod in which no process answers metadata requests.
func unanswered() diagnose.Metadata {
	refused := func(context.Context) (diagnose.Responder, error) { return diagnose.Responder{}, syscall.ECONNREFUSED }
	lost := func(context.Context) (diagnose.Responder, error) {
		return diagnose.Responder{}, context.DeadlineExceeded
	}
	noOwner := func() ([]uint32, error) { return nil, nil }
	return diagnose.Metadata{Port: 8000, ProxyUIDs: []uint32{1501}, PortOwners: noOwner, AskPort: refused, AskRedirect: lost, AskProof: refused}
}

// config returns a configuration whose addresses are closed ports of this machine.
func config(t *testing.T, claims map[string]any) diagnose.Config {
	t.Helper()
	return diagnose.Config{
		Exchange: exchange.Config{
			TenantID: entra.DefaultTenantID, AuthorityHost: "https://127.0.0.1:1/", FederatedTokenFile: unsigned(t, claims),
		},
		DefaultClientID: clientID, Resource: "https://management.azure.com/", IMDS: unanswered(),
	}
}

func goodClaims() map[string]any {
	return map[string]any{"iss": "https://127.0.0.1:1/issuer", "sub": subject, "aud": "api://AzureADTokenExchange", "exp": 4102444800}
}

// text returns the report as text.
func text(t *testing.T, r diagnose.Report) string {
	t.Helper()
	var b bytes.Buffer
	for _, s := range r.Steps {
		if err := diagnose.WriteText(&b, s); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// finding returns the finding of a step and an item.
func finding(t *testing.T, r diagnose.Report, step diagnose.StepName, item string) diagnose.Finding {
	t.Helper()
	for _, s := range r.Steps {
		for _, f := range s.Findings {
			if s.Name == step && f.Item == item {
				return f
			}
		}
	}
	t.Fatalf("no finding %q of step %q in:\n%s", item, step, text(t, r))
	return diagnose.Finding{}
}

// TestEach: Run calls each with every step of the report, in order.
func TestEach(t *testing.T) {
	var got []diagnose.StepName
	report := diagnose.Run(t.Context(), config(t, goodClaims()), func(s diagnose.Step) { got = append(got, s.Name) })
	want := []diagnose.StepName{diagnose.Environment, diagnose.FederatedToken, diagnose.Issuer, diagnose.Authority, diagnose.Exchange, diagnose.IMDS}
	if fmt.Sprint(got) != fmt.Sprint(want) || len(report.Steps) != len(want) {
		t.Errorf("got steps %v, want %v", got, want)
	}
}
