package tokens_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeEntra answers exchanges after its latency, each with a token that names its client ID
// and resource. In a synctest bubble the latency takes no real time.
type fakeEntra struct {
	life      time.Duration // zero: an hour
	refreshIn time.Duration // zero: none
	latency   time.Duration

	mu    sync.Mutex // guards the fields below
	fault func(call) *exchange.Error
	hang  func(call) bool
	calls map[azure.Resource][]time.Time // times of the exchanges of each resource
}

// exchangeFunc is an Exchanger that calls the function.
type exchangeFunc func() (exchange.Grant, error)

func (f exchangeFunc) Exchange(context.Context, azure.ClientID, azure.Resource) (exchange.Grant, error) {
	return f()
}
func (f exchangeFunc) Discover(context.Context) error { return nil }

// call is one exchange.
type call struct {
	clientID azure.ClientID
	resource azure.Resource
	n        int // from 1, of this resource
}

// Exchange implements [tokens.Exchanger].
func (f *fakeEntra) Exchange(ctx context.Context, clientID azure.ClientID, resource azure.Resource) (exchange.Grant, error) {
	c, fault, hang := f.note(clientID, resource)
	began := time.Now()
	if hang {
		<-ctx.Done()
	} else if f.latency > 0 {
		select {
		case <-time.After(f.latency):
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		return exchange.Grant{}, &exchange.Error{Kind: exchange.DeadlineExceeded, Detail: "no answer", Retry: exchange.RetrySoon}
	}
	if fault != nil {
		return exchange.Grant{}, fault
	}
	life := f.life
	if life == 0 {
		life = time.Hour
	}
	g := exchange.Grant{Token: exchange.Token{
		AccessToken: tokenFor(clientID, resource, c.n),
		NotBefore:   began,
		ExpiresOn:   time.Now().Add(life),
	}}
	if f.refreshIn > 0 {
		g.RefreshOn = time.Now().Add(f.refreshIn)
	}
	return g, nil
}

// Discover implements [tokens.Exchanger].
func (f *fakeEntra) Discover(context.Context) error { return nil }

func (f *fakeEntra) note(clientID azure.ClientID, resource azure.Resource) (c call, fault *exchange.Error, hang bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls == nil {
		f.calls = make(map[azure.Resource][]time.Time)
	}
	f.calls[resource] = append(f.calls[resource], time.Now())
	c = call{clientID: clientID, resource: resource, n: len(f.calls[resource])}
	if f.fault != nil {
		fault = f.fault(c)
	}
	return c, fault, f.hang != nil && f.hang(c)
}

func tokenFor(clientID azure.ClientID, resource azure.Resource, n int) string {
	return fmt.Sprintf("%s|%s|%d", clientID, resource, n)
}

// failWith makes all calls from now on fail with a copy of e. Nil: they succeed.
func (f *fakeEntra) failWith(e *exchange.Error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = nil
	if e != nil {
		f.fault = func(call) *exchange.Error { copied := *e; return &copied }
	}
}

func (f *fakeEntra) hangs(hang bool) { f.hangsFor(func(call) bool { return hang }) }

func (f *fakeEntra) hangsFor(which func(call) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hang = which
}

func (f *fakeEntra) count(resource azure.Resource) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls[resource])
}

func (f *fakeEntra) all() map[azure.Resource][]time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.calls)
}

// gaps returns the times between the exchanges of all resources.
func (f *fakeEntra) gaps() []time.Duration {
	var times []time.Time
	for _, calls := range f.all() {
		times = append(times, calls...)
	}
	slices.SortFunc(times, time.Time.Compare)
	var gaps []time.Duration
	for i := range max(len(times)-1, 0) {
		gaps = append(gaps, times[i+1].Sub(times[i]))
	}
	return gaps
}

const (
	clientID = "aaaaaaaa-0000-4000-8000-000000000001"
	resource = "https://vault.azure.net"
)

// fakeService returns a service whose jitter is always in the middle.
func fakeService(t *testing.T, f *fakeEntra) *tokens.Service {
	t.Helper()
	return newService(t, tokens.Config{Exchanger: f})
}

func newService(t *testing.T, cfg tokens.Config) *tokens.Service {
	t.Helper()
	s, err := tokens.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.FixJitter(0.5)
	return s
}

// prefetch returns the requests to prefetch resources for the default client ID.
func prefetch(resources ...azure.Resource) []tokens.Request {
	var out []tokens.Request
	for _, r := range resources {
		out = append(out, tokens.Request{ClientID: clientID, Resource: r})
	}
	return out
}

// run runs s until stop is called, which waits until Run has ended.
func run(t *testing.T, s *tokens.Service) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// ask makes the request, by default for clientID and resource, and checks that the token is for
// these.
func ask(t *testing.T, s *tokens.Service, r tokens.Request) (tokens.Result, error) {
	t.Helper()
	if r.ClientID == "" {
		r.ClientID = clientID
	}
	if r.Resource == "" {
		r.Resource = resource
	}
	got, err := s.Token(t.Context(), r)
	if err == nil {
		checkFor(t, got.Token, r)
	}
	return got, err
}

func checkFor(t *testing.T, token exchange.Token, r tokens.Request) {
	t.Helper()
	prefix := string(r.ClientID) + "|" + string(r.Resource) + "|"
	if len(token.AccessToken) <= len(prefix) || token.AccessToken[:len(prefix)] != prefix {
		t.Errorf("asked for a token of %s for %s, got %s", r.ClientID, r.Resource, token.AccessToken)
	}
}
