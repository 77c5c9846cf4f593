package exchange_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
)

// childVar is an environment variable. If it is set, the test binary runs no tests but makes one
// exchange with the configuration in the variable. A process reads the system's roots, which
// SSL_CERT_FILE replaces, only once.
const childVar = "EXCHANGE_TEST_CHILD"

func TestMain(m *testing.M) {
	if cfg := os.Getenv(childVar); cfg != "" {
		fmt.Println(oneExchange(cfg))
		return
	}
	goleak.VerifyTestMain(m)
}

// childConfig is the part of a configuration that is passed to the child process.
type childConfig struct {
	TenantID           azure.Tenant
	AuthorityHost      azure.AuthorityHost
	FederatedTokenFile string
	Binding            exchange.Binding
}

// oneExchange returns "token", or the error's detail.
func oneExchange(encoded string) string {
	var c childConfig
	if err := json.Unmarshal([]byte(encoded), &c); err != nil {
		return err.Error()
	}
	s, err := exchange.New(exchange.Config{
		TenantID:           c.TenantID,
		AuthorityHost:      c.AuthorityHost,
		FederatedTokenFile: c.FederatedTokenFile,
		Binding:            c.Binding,
		Dial:               dialLoopback,
	})
	if err != nil {
		return err.Error()
	}
	if _, err := s.Exchange(context.Background(), clientID, resource); err != nil {
		return err.Error()
	}
	return "token"
}

// withSystemRoots makes an exchange in a child process whose system roots contain the CA of idp.
func (p *pod) withSystemRoots(t *testing.T, idp *entra.Server) string {
	t.Helper()
	encoded, err := json.Marshal(childConfig{
		TenantID:           p.cfg.TenantID,
		AuthorityHost:      p.cfg.AuthorityHost,
		FederatedTokenFile: p.cfg.FederatedTokenFile,
		Binding:            p.cfg.Binding,
	})
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childVar+"="+string(encoded), "SSL_CERT_FILE="+caFile(t, idp))
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestSSLCertFileReplacesTheSystemRoots(t *testing.T) {
	p := startPod(t, entra.Config{})
	if got := p.withSystemRoots(t, p.idp); got != "token" {
		t.Errorf("with SSL_CERT_FILE: got %q, want a token", got)
	}
}

func TestBindingDoesNotTrustTheSystemRoots(t *testing.T) {
	p := bindingPod(t, "", "localhost")
	if got := p.withSystemRoots(t, p.idp); got != "token" {
		t.Errorf("without its own roots: got %q, want a token", got)
	}
	p.cfg.Binding.CAData = string(startPod(t, entra.Config{}).idp.CAPEM())
	if got := p.withSystemRoots(t, p.idp); !strings.Contains(got, "not in AZURE_KUBERNETES_CA_DATA") {
		t.Errorf("with its own roots: got %q, want a refusal", got)
	}
}
