package tokens_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// fleet is what TestFleet simulates.
type fleet struct {
	name            string
	sidecars        int
	life, refreshIn time.Duration
	askEvery        time.Duration // how often each application asks
	span            time.Duration
	window          time.Duration // over which exchanges a second are averaged

	// perSecond is how many exchanges a second Entra answers before it throttles.
	perSecond  int
	retryAfter time.Duration
}

// throttlingEntra answers perSecond exchanges of the whole fleet a second, and the others with
// 429.
type throttlingEntra struct {
	fleet
	began time.Time

	mu        sync.Mutex
	answered  []int32 // successful exchanges, by second
	throttled int
	second    int
	taken     int
}

func (e *throttlingEntra) Discover(context.Context) error { return nil }

func (e *throttlingEntra) Exchange(context.Context, azure.ClientID, azure.Resource) (exchange.Grant, error) {
	now := time.Now()
	second := int(now.Sub(e.began) / time.Second)
	e.mu.Lock()
	defer e.mu.Unlock()
	if second != e.second {
		e.second, e.taken = second, 0
	}
	if e.taken++; e.taken > e.perSecond {
		e.throttled++
		return exchange.Grant{}, &exchange.Error{
			Kind: exchange.Throttled, RetryAfter: e.retryAfter, Detail: "throttled",
		}
	}
	if second < len(e.answered) {
		e.answered[second]++
	}
	g := exchange.Grant{Token: exchange.Token{AccessToken: "token", NotBefore: now, ExpiresOn: now.Add(e.life)}}
	if e.refreshIn > 0 {
		g.RefreshOn = now.Add(e.refreshIn)
	}
	return g, nil
}

// TestFleet has 2,000 sidecars start within one second, as after a node pool's upgrade,
// against an Entra that throttles: 40 exchanges a second for 2,000 sidecars are 200 for
// 10,000. Each is a whole Service with its own schedule and jitter, and each application
// asks for tokens all the time. In a window there are some 70 exchanges or more, so
// that their number varies little by chance.
func TestFleet(t *testing.T) {
	for _, f := range []fleet{
		{name: "managed identities: 24 h, refresh_in 12 h", life: 24 * time.Hour, refreshIn: 12 * time.Hour,
			span: 48 * time.Hour, askEvery: 4 * time.Hour, window: 30 * time.Minute},
		// A shorter span, which is still more token lifetimes.
		{name: "application registrations: 1 h", life: time.Hour,
			span: 6 * time.Hour, askEvery: 20 * time.Minute, window: 5 * time.Minute},
	} {
		f.sidecars, f.perSecond, f.retryAfter = 2000, 40, 10*time.Second
		t.Run(f.name, f.simulate)
	}
}

func (f fleet) simulate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &throttlingEntra{fleet: f, began: time.Now(), answered: make([]int32, f.span/time.Second), second: -1}
		ctx, cancel := context.WithTimeout(t.Context(), f.span)
		defer cancel()
		var all tally
		var wg sync.WaitGroup
		for i := range f.sidecars {
			s := newFleetService(t, e)
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Second / time.Duration(f.sidecars))
				wg.Go(func() { _ = s.Run(ctx) })
				if f.firstToken(ctx, s) {
					all.holds(time.Since(e.began))
					all.waits(f.application(ctx, s))
				}
			})
		}
		wg.Wait()
		f.report(t, e, &all)
	})
}

func newFleetService(t *testing.T, e *throttlingEntra) *tokens.Service {
	t.Helper()
	s, err := tokens.New(tokens.Config{Exchanger: e})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tally holds the counts of all sidecars.
type tally struct {
	mu     sync.Mutex
	held   int           // sidecars that have a token
	last   time.Duration // when the last of them got it
	waited int           // requests, after the first, that had to wait for Entra
}

func (a *tally) holds(after time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held++
	a.last = max(a.last, after)
}

func (a *tally) waits(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waited += n
}

// firstToken requests a token as an SDK does, and retries after Retry-After.
func (f fleet) firstToken(ctx context.Context, s *tokens.Service) bool {
	for ctx.Err() == nil {
		_, err := s.Token(ctx, tokens.Request{ClientID: clientID, Resource: resource})
		if err == nil {
			return true
		}
		wait := time.Second
		if e, ok := err.(*exchange.Error); ok && e.RetryAfter > wait {
			wait = e.RetryAfter
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	return false
}

// application requests tokens until ctx ends, and returns how often it had to wait for Entra.
func (f fleet) application(ctx context.Context, s *tokens.Service) (waited int) {
	tick := time.NewTicker(f.askEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return waited
		case <-tick.C:
		}
		if ctx.Err() != nil {
			return waited
		}
		got, err := s.Token(ctx, tokens.Request{ClientID: clientID, Resource: resource})
		if err != nil || got.Source != tokens.SourceCache {
			waited++
		}
	}
}

func (f fleet) report(t *testing.T, e *throttlingEntra, all *tally) {
	perWindow := make([]float64, 0, f.span/f.window)
	for seconds := range slices.Chunk(e.answered, int(f.window/time.Second)) {
		sum := int32(0)
		for _, n := range seconds {
			sum += n
		}
		perWindow = append(perWindow, float64(sum)/f.window.Seconds())
	}
	first, later := perWindow[:time.Hour/f.window], perWindow[time.Hour/f.window:]
	mean, peak := average(later), slices.Max(later)
	t.Logf("%s\n%s", f.name, histogram(perWindow, f.window))
	t.Logf("%d have a token, the last after %s; %d throttled answers; the first %s: %.1f exchanges/s",
		all.held, all.last.Round(time.Second), e.throttled, f.window, first[0])
	t.Logf("after the first hour: mean %.2f exchanges/s, peak %.2f (over %s), peak/mean %.2f; requests that had to wait for Entra: %d",
		mean, peak, f.window, peak/mean, all.waited)
	if peak >= 3*mean {
		t.Errorf("peak %.2f exchanges/s is %.2f times the mean, want less than 3", peak, peak/mean)
	}
	if all.held != f.sidecars || all.last > 10*time.Minute {
		t.Errorf("%d of %d have a token after %s, want all within 10 minutes", all.held, f.sidecars, all.last)
	}
	if all.waited > 0 {
		t.Errorf("%d requests had to wait for Entra after the first, want none", all.waited)
	}
}

func average(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += v
	}
	return sum / float64(len(x))
}

// histogram returns one line for each two hours, with their mean and peak.
func histogram(perWindow []float64, window time.Duration) string {
	const span = 2 * time.Hour
	var out []byte
	for i := 0; i < len(perWindow); i += int(span / window) {
		part := perWindow[i:min(i+int(span/window), len(perWindow))]
		out = fmt.Appendf(out, "  %2d h  mean %6.2f/s  peak %6.2f/s\n", i*int(window)/int(time.Hour), average(part), slices.Max(part))
	}
	return string(out)
}
