package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"imds-oidc-proxy/internal/inject"
)

// TestNoRateLimit checks that requests to the API server are not delayed by client-go.
func TestNoRateLimit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"clusters":[{"name":"c","cluster":{"server":"https://192.0.2.1"}}],"contexts":[{"name":"x","context":{"cluster":"c"}}],"current-context":"x"}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	access, err := apiServer(file)
	if err != nil {
		t.Fatal(err)
	}
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	access.ContentConfig = rest.ContentConfig{GroupVersion: &corev1.SchemeGroupVersion, NegotiatedSerializer: serializer.NewCodecFactory(scheme)}
	requests, err := rest.RESTClientFor(access)
	if err != nil {
		t.Fatal(err)
	}
	if limiter := requests.GetRateLimiter(); limiter != nil {
		t.Errorf("got a limit of %v requests per second, want none", limiter.QPS())
	}
}

// TestSlowAPIServer checks that pods whose account is in the cache are admitted while many others
// wait for the API server.
func TestSlowAPIServer(t *testing.T) {
	const waiting = 3 * maxInFlight
	s := start(t, []client.Object{federated("orders")}, []client.Object{account("plain", nil)}, nil)
	slow := &gate{entered: make(chan struct{}, waiting), open: make(chan struct{})}
	open := sync.OnceFunc(func() { close(slow.open) })
	t.Cleanup(open) // before the server waits for its requests
	s.slow.Store(slow)
	plain := strings.Replace(podJSON(injected), `"serviceAccountName":"orders"`, `"serviceAccountName":"plain"`, 1)
	answers := make(chan bool, waiting)
	for range waiting {
		go func() { answers <- s.ask(review(plain, nil)).Allowed }()
	}
	for i := range waiting {
		select {
		case <-slow.entered:
		case <-time.After(timeout):
			t.Fatalf("%d requests wait for the API server, want %d", i, waiting)
		}
	}
	for range 2 * maxInFlight {
		if got := s.ask(review(podJSON(injected), nil)); !got.Allowed || len(got.Patch) == 0 {
			t.Fatalf("got %+v, want a patch", got)
		}
	}
	if len(answers) > 0 {
		t.Fatal("a request did not wait for the API server")
	}
	open()
	for range waiting {
		if !<-answers {
			t.Error("a pod without client ID was refused")
		}
	}
}

// TestSecondCall checks that the API server's second call for a pod without client ID costs no
// request, unless the account has changed or some time has passed, and that a new pod always costs
// one, since the account may have been annotated meanwhile.
func TestSecondCall(t *testing.T) {
	reads := 0
	c, cache, clock := accountsFor(t, account("orders", nil), func() { reads++ })
	read := func(again bool, want int) {
		t.Helper()
		reads = 0
		if _, err := c.account(t.Context(), "shop", "orders", again); err != nil {
			t.Error(err)
		}
		if reads != want {
			t.Errorf("read from the API server %d times, want %d", reads, want)
		}
	}
	read(true, 1)
	read(true, 0)
	read(false, 1)
	clock.now = clock.now.Add(recentTime)
	read(true, 1)
	read(true, 0)
	changed := account("orders", map[string]string{"example.test/a": "b"})
	if err := cache.Create(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	read(true, 1)
	read(true, 0)
	changed.Annotations = map[string]string{"example.test/a": "c"}
	if err := cache.Update(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	read(true, 1)
	for i := range 2 * maxRecent {
		if _, err := c.account(t.Context(), "shop", fmt.Sprintf("absent-%d", i), true); !apierrors.IsNotFound(err) {
			t.Fatalf("got %v, want not found", err)
		}
	}
	if got := c.recent.Len(); got != maxRecent {
		t.Errorf("%d lookups are remembered, want %d", got, maxRecent)
	}
	reads = 0
	if _, err := c.account(t.Context(), "shop", fmt.Sprintf("absent-%d", 2*maxRecent-1), true); !apierrors.IsNotFound(err) || reads != 0 {
		t.Errorf("got %v and %d reads, want not found and none", err, reads)
	}
}

// TestOutdatedCache checks that an account that was deleted is not used from a cache that no longer
// follows the API server, also if the API server cannot be asked.
func TestOutdatedCache(t *testing.T) {
	for _, test := range []struct {
		name   string
		stored []client.Object
		fail   error
		code   int32
		want   string
	}{
		{name: "deleted", code: 400, want: "no service account orders"},
		{name: "forbidden", fail: apierrors.NewForbidden(corev1.Resource("serviceaccounts"), "orders", errors.New("no role")), code: 500, want: "the webhook failed"},
		{name: "unchanged", stored: []client.Object{federated("orders")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, []client.Object{federated("orders")}, test.stored, test.fail)
			s.outdated = errors.New("the watch is broken")
			got := s.ask(review(podJSON(injected), nil))
			if got.Allowed != (test.code == 0) || !got.Allowed && (got.Result.Code != test.code || !strings.Contains(got.Result.Message, test.want)) {
				t.Errorf("got allowed %t, %+v; want code %d, %s", got.Allowed, got.Result, test.code, test.want)
			}
			if got := s.reads.Load(); got != 1 {
				t.Errorf("read from the API server %d times, want once", got)
			}
		})
	}
}

// accountsFor returns a reader of accounts with an empty cache, and an API server with one account.
func accountsFor(t *testing.T, stored *corev1.ServiceAccount, read func()) (*cachedAccounts, client.Client, *fakeClock) {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	counted := interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
		read()
		return c.Get(ctx, key, obj, opts...)
	}}
	cache := fake.NewClientBuilder().WithScheme(scheme).Build()
	direct := fake.NewClientBuilder().WithScheme(scheme).WithObjects(stored).WithInterceptorFuncs(counted).Build()
	c, clock := newAccounts(cache, direct, func() error { return nil }), &fakeClock{now: time.Now()}
	c.now = clock.Now
	return c, cache, clock
}

// fakeClock is a clock that a test sets.
type fakeClock struct{ now time.Time }

func (c *fakeClock) Now() time.Time { return c.now }

// TestWaitingIsLimited checks that the memory of waiting requests is limited, and that a request
// beyond the limit is answered from the cache.
func TestWaitingIsLimited(t *testing.T) {
	reads := 0
	c, cache, _ := accountsFor(t, account("orders", nil), func() { reads++ })
	p := newPlaces()
	if !p.waiting.TryAcquire(waitingBudget) {
		t.Fatal("no budget")
	}
	place, err := p.enter(t.Context(), minSize)
	if err != nil {
		t.Fatal(err)
	}
	ctx := place.with(t.Context())
	if _, err := c.account(ctx, "shop", "orders", false); !errors.Is(err, errWaiting) {
		t.Errorf("not in the cache: got %v, want %v", err, errWaiting)
	}
	if err := cache.Create(ctx, account("orders", map[string]string{inject.TenantIDAnnotation: testTenantID})); err != nil {
		t.Fatal(err)
	}
	got, err := c.account(ctx, "shop", "orders", false)
	if err != nil || got.Annotations[inject.TenantIDAnnotation] != testTenantID {
		t.Errorf("in the cache: got %v, %v", got, err)
	}
	if reads != 0 || !place.held {
		t.Errorf("%d reads, place held: %t; want none, true", reads, place.held)
	}
}

// TestPlaceIsLost checks that a request whose time is over after it has waited has no place, and
// that all budgets are free at the end.
func TestPlaceIsLost(t *testing.T) {
	p := newPlaces()
	ctx, cancel := context.WithCancel(t.Context())
	place, err := p.enter(ctx, minSize)
	if err != nil {
		t.Fatal(err)
	}
	err = outside(place.with(ctx), func() error {
		if !p.work.TryAcquire(workBudget) {
			t.Error("the request that waits holds its place")
		}
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) || place.held {
		t.Errorf("got %v, place held: %t; want %v, false", err, place.held, context.Canceled)
	}
	p.work.Release(workBudget)
	place.leave()
	for name, free := range map[string]bool{"work": p.work.TryAcquire(workBudget), "waiting": p.waiting.TryAcquire(waitingBudget)} {
		if !free {
			t.Errorf("the budget %s is not free", name)
		}
	}
}
