package exchange_test

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
	"imds-oidc-proxy/test/kit/entra"
)

func TestTokenOverTLS(t *testing.T) {
	p := startPod(t, entra.Config{})
	s := p.service(t)
	for i, want := range []tokens.Source{tokens.SourceEntra, tokens.SourceCache} {
		got, err := p.get(t, s)
		if err != nil {
			t.Fatal(err)
		}
		if got.Source != want {
			t.Errorf("request %d: source %s, want %s", i, got.Source, want)
		}
	}
	want := entra.Counts{Token: 1, TenantDiscovery: 1, IssuerDiscovery: 1, IssuerKeys: 1}
	if got := p.idp.Counts(); got != want {
		t.Errorf("requests: got %+v, want %+v", got, want)
	}
}

// Each exchange sends one token request: MSAL's cache does not answer, not even for a resource
// that differs only in case. Discovery is done once, for all client IDs.
func TestExchangeIsOneTokenRequest(t *testing.T) {
	p := startPod(t, entra.Config{})
	p.idp.AddResource(strings.ToUpper(resource))
	s := p.service(t)
	for n, r := range []azure.Resource{resource, resource, azure.Resource(strings.ToUpper(resource)), resource + "/"} {
		if err := s.exchange(t.Context(), clientID, r); err != nil {
			t.Fatal(err)
		}
		if got := p.idp.Counts(); got.Token != n+1 || got.TenantDiscovery != 1 || got.InstanceDiscovery != 0 {
			t.Errorf("after %d exchanges: %+v", n+1, got)
		}
		if got := p.idp.Exchanges()[n].Scope; !strings.HasPrefix(got, string(r)+"/.default ") && got != string(r)+"/.default" {
			t.Errorf("scope: got %q, want %q", got, string(r)+"/.default")
		}
	}
	_ = s.exchange(t.Context(), "bbbbbbbb-0000-4000-8000-000000000002", resource)
	if got := p.idp.Counts(); got.Token != 5 || got.TenantDiscovery != 1 {
		t.Errorf("after an exchange for another client ID: %+v", got)
	}
}

func TestResourceThatIsAScope(t *testing.T) {
	p := startPod(t, entra.Config{})
	if err := p.service(t).exchange(t.Context(), clientID, resource+"/.default"); err != nil {
		t.Fatal(err)
	}
	if got := p.idp.Exchanges()[0].Resource; got != resource {
		t.Errorf("resource: got %q, want %q", got, resource)
	}
}

func TestRefreshOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{TokenLifetime: 24 * time.Hour, RefreshIn: 6 * time.Hour})
		got, err := p.service(t).Exchange(t.Context(), clientID, resource)
		if want := time.Now().Add(6 * time.Hour); err != nil || !got.RefreshOn.Equal(want) {
			t.Errorf("got RefreshOn %s, error %v, want %s", got.RefreshOn, err, want)
		}
	})
}

func TestRunConnectsAndDiscovers(t *testing.T) {
	p := startPod(t, entra.Config{})
	var dials atomic.Int32
	p.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		dials.Add(1)
		return dialLoopback(ctx, network, address)
	}
	s := p.service(t)
	stop := run(t, s)
	defer stop()
	waitFor(t, "connection", func() bool { return strings.Contains(p.log.String(), "connected to entra") })
	if got, want := p.idp.Counts(), (entra.Counts{TenantDiscovery: 1}); got != want {
		t.Errorf("after Run has connected: %+v, want %+v", got, want)
	}
	if _, err := p.get(t, s); err != nil {
		t.Fatal(err)
	}
	if got := p.idp.Counts(); got.Token != 1 || got.TenantDiscovery != 1 {
		t.Errorf("after the first request: %+v", got)
	}
	if got := dials.Load(); got != 1 {
		t.Errorf("%d connections, want 1: the first request reuses it", got)
	}
}

// If Entra throttles or is down from the start, not every try fetches the discovery document.
func TestOutageAtTheStartCostsFewDiscoveryRequests(t *testing.T) {
	for _, status := range []int{429, 503} {
		synctest.Test(t, func(t *testing.T) {
			p := bubblePod(t, entra.Config{})
			p.idp.FailAlways(entra.FaultStatus(status, ""))
			s := p.service(t)
			for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(time.Second) {
				if _, err := p.get(t, s); err == nil {
					t.Error("no error")
				}
			}
			if got := p.idp.Counts(); got.Token < 5 || got.TenantDiscovery > 4 {
				t.Errorf("status %d for two minutes: %+v, want at most 4 discovery requests", status, got)
			}
		})
	}
}

// A shared fetch of the discovery document continues when the caller that began it leaves.
func TestDiscoveryContinuesWithoutItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{})
		p.idp.FailAlways(entra.FaultHang().On(entra.TenantDiscovery))
		s := p.service(t)
		first, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			wantKind(t, s.exchange(first, clientID, resource), exchange.DeadlineExceeded)
		})
		synctest.Wait()
		wg.Go(func() {
			if err := s.exchange(t.Context(), clientID, resource+"/"); err != nil {
				t.Errorf("the second: %v", err)
			}
		})
		synctest.Wait()
		leave()
		synctest.Wait()
		p.idp.Heal()
		wg.Wait()
		if got := p.idp.Counts().TenantDiscovery; got != 1 {
			t.Errorf("%d discovery requests, want 1", got)
		}
	})
}

// If Entra hangs, Run still ends, and no goroutine is left (TestMain checks that).
func TestRunEndsWhileEntraHangs(t *testing.T) {
	for _, where := range []entra.Endpoint{entra.TenantDiscovery, entra.TokenEndpoint} {
		p := startPod(t, entra.Config{})
		p.idp.FailAlways(entra.FaultHang().On(where))
		p.prefetch = []tokens.Request{{ClientID: clientID, Resource: resource}}
		stop := run(t, p.service(t))
		waitFor(t, "request to hang", func() bool {
			c := p.idp.Counts()
			return where == entra.TenantDiscovery && c.TenantDiscovery > 0 || c.Token > 0
		})
		began := time.Now()
		stop()
		if took := time.Since(began); took >= tryTimeout { // the time of a try
			t.Errorf("%s hangs: Run took %s to end", where, took)
		}
		if got := p.lines(t, "token exchange failed"); len(got) != 0 {
			t.Errorf("%s hangs: the end is logged as a failure: %v", where, got)
		}
	}
}
