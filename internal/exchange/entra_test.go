package exchange_test

import (
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/entra"
)

const subject = "system:serviceaccount:shop:cart"

// pod is a stand-in for Entra, and what a pod that federates with it has.
type pod struct {
	idp   *entra.Server
	token *entra.ProjectedToken
	cfg   exchange.Config
}

// startPod has a stand-in on a loopback listener, with TLS.
func startPod(t *testing.T, cfg entra.Config) *pod {
	t.Helper()
	idp, err := entra.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := idp.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	p := newPod(t, idp)
	p.cfg.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := idp.WriteCA(p.cfg.CAFile); err != nil {
		t.Fatal(err)
	}
	return p
}

func newPod(t *testing.T, idp *entra.Server) *pod {
	t.Helper()
	idp.AddApplication(entra.Application{
		ClientID:    clientID,
		Credentials: []entra.FederatedCredential{{Subject: subject}},
	})
	idp.AddResource("https://*.example.test")
	token, err := idp.ProjectToken(entra.ProjectedTokenConfig{Dir: t.TempDir(), Subject: subject})
	if err != nil {
		t.Fatal(err)
	}
	return &pod{idp: idp, token: token, cfg: exchange.Config{
		TenantID:           idp.TenantID(),
		AuthorityHost:      idp.AuthorityHost(),
		FederatedTokenFile: token.Path(),
		Log:                zap.NewNop(),
	}}
}

func (p *pod) service(t *testing.T) *exchange.Service {
	t.Helper()
	s, err := exchange.New(p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.CloseIdle)
	return s
}

func TestTokenOverTLS(t *testing.T) {
	p := startPod(t, entra.Config{})
	s := p.service(t)
	for i, want := range []exchange.Source{exchange.SourceEntra, exchange.SourceCache} {
		got, err := s.Token(t.Context(), exchange.Request{ClientID: clientID, Resource: resource})
		if err != nil {
			t.Fatal(err)
		}
		if got.Source != want {
			t.Errorf("request %d: source %s, want %s", i, got.Source, want)
		}
		token, err := p.idp.VerifyAccessToken(got.Token.AccessToken)
		if err != nil {
			t.Fatal(err)
		}
		if token.ClientID != clientID || token.Resource != resource {
			t.Errorf("token is for %s and %s", token.ClientID, token.Resource)
		}
	}
	want := entra.Counts{Token: 1, TenantDiscovery: 1, IssuerDiscovery: 1, IssuerKeys: 1}
	if got := p.idp.Counts(); got != want {
		t.Errorf("requests: got %+v, want %+v", got, want)
	}
}

// Each exchange is one token request: nothing of MSAL's answers in its place.
func TestExchangeIsExactlyOnePost(t *testing.T) {
	p := startPod(t, entra.Config{})
	s := p.service(t)
	for n := 1; n <= 3; n++ {
		if err := s.Exchange(t.Context(), clientID, resource); err != nil {
			t.Fatal(err)
		}
		if got := p.idp.Counts(); got.Token != n || got.TenantDiscovery != 1 || got.InstanceDiscovery != 0 {
			t.Errorf("after %d exchanges: %+v", n, got)
		}
	}
}
