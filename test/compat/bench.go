package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/pod"
)

const (
	// driverTimeout ends a driver that hangs. A JVM on a busy machine may take half
	// of it to start.
	driverTimeout = 2 * time.Minute

	// settleTimeout is how long the proxy may take to log an answer that the
	// client has already.
	settleTimeout = 10 * time.Second

	pollInterval = 20 * time.Millisecond
)

// bench tries clients in pods of the namespace that the process is in.
type bench struct {
	where place
	keys  *entra.Keys
	arm   *resourceManager
	decoy *pod.Decoy // where there is no redirect; else the pod has one
	cfg   pod.Config
	pod   *pod.Pod
	home  string
}

func newBench(cache string, where place) (*bench, error) {
	b := &bench{where: where, keys: entra.NewKeys()}
	b.cfg = pod.Config{
		Proxy: filepath.Join(cache, "bin", "proxy"),
		ProxyArgs: []string{"--log-level=debug",
			"--identity=" + otherObjectID + "=" + otherClientID, "--identity=" + otherResourceID + "=" + otherClientID},
		Entra: entra.Config{Keys: b.keys},
	}
	var err error
	if b.arm, err = startResourceManager(); err != nil {
		return nil, err
	}
	if where == redirected {
		b.cfg.ProxyInit = filepath.Join(cache, "bin", "proxy-init")
		return b, nil
	}
	// The node's IMDS, for clients that go there whatever the environment says.
	b.decoy, err = pod.StartDecoy()
	return b, err
}

func (b *bench) close() {
	b.arm.close()
	if b.decoy != nil {
		b.decoy.Close()
	}
}

// try tries one client in every scenario of this place, in a pod of its own.
func (b *bench) try(ctx context.Context, m manifest, j job) result {
	r := result{Family: j.Family, Library: j.Library, Version: j.Version, Where: j.Where}
	l, err := m.library(j.Family, j.Library)
	if err == nil {
		b.pod, err = pod.Start(ctx, b.cfg)
	}
	if err != nil {
		r.Failure = err.Error()
		return r
	}
	defer b.pod.Stop()
	b.pod.Entra.AddApplication(entra.Application{ClientID: otherClientID, Credentials: []entra.FederatedCredential{{Subject: pod.Subject}}})
	b.pod.Entra.AddResource("https://*.example.test")
	b.arm.trust(b.pod.Entra)

	if b.home, err = os.MkdirTemp("", "home-"); err == nil {
		err = os.Chown(b.home, pod.ApplicationUID, pod.ApplicationUID)
	}
	if err != nil {
		r.Failure = err.Error()
		return r
	}
	defer os.RemoveAll(b.home)

	for _, s := range scenarios() {
		if s.where != b.where || j.Scenarios != nil && !slices.Contains(j.Scenarios, s.name) {
			continue
		}
		e := l.expected(s, j.Version)
		c := cell{Scenario: s.name, Got: absent, Expected: e}
		if e.Want != absent {
			c = b.judge(s, e, b.run(ctx, s, j))
		}
		r.Cells = append(r.Cells, c)
	}
	return r
}

// run has a client do what a scenario asks for, and observes it.
func (b *bench) run(ctx context.Context, s scenario, j job) observed {
	o := observed{resource: resourceFor(s, j)}
	logged, asked := len(b.pod.ProxyLog.String()), b.nodeRequests()
	b.pod.Entra.Reset()
	if s.fault != nil {
		b.pod.Entra.FailWhen(faultsFor(o.resource, s.fault))
	}

	b.drive(ctx, s, j, &o)
	if s.again != nil && o.failure == nil {
		b.waitUntil(ctx, outageLife, func() bool { return s.again(b.exchangesFor(o.resource)) })
		b.drive(ctx, s, j, &o)
	}
	b.waitUntil(ctx, settleTimeout, func() bool { return answered(b.pod.ProxyLog.String()[logged:]) })
	o.countRequests(b.pod.ProxyLog.String()[logged:])
	o.exchanges = b.exchangesFor(o.resource)
	o.node = b.nodeRequests() - asked
	b.waitUntil(ctx, quietTime, b.quietIsOver)
	return o
}

// quietIsOver reports whether the proxy may ask Entra again. A throttle quiets it for
// the client ID, which the next scenario has too, for half as long again as Entra said
// at the most (docs/adr/0024).
func (b *bench) quietIsOver() bool {
	return !slices.ContainsFunc(b.pod.Entra.Exchanges(), func(x entra.Exchange) bool {
		return x.Status == http.StatusTooManyRequests && time.Since(x.Time) < quietTime
	})
}

func (b *bench) exchangesFor(resource string) []entra.Exchange {
	return slices.DeleteFunc(b.pod.Entra.Exchanges(), func(x entra.Exchange) bool { return x.Resource != resource })
}

// faultsFor spares the exchanges of other resources: the proxy may still be
// refreshing the token of the scenario before.
func faultsFor(resource string, fault func(n int) *entra.Fault) func(entra.Exchange) *entra.Fault {
	var n atomic.Int64
	return func(x entra.Exchange) *entra.Fault {
		if x.Resource != resource {
			return nil
		}
		return fault(int(n.Add(1) - 1))
	}
}

// drive runs the driver once and adds its answers.
func (b *bench) drive(ctx context.Context, s scenario, j job, o *observed) {
	ctx, cancel := context.WithTimeout(ctx, driverTimeout)
	defer cancel()
	env := append([]string{"HOME=" + b.home, "LANG=C.UTF-8", "REQUESTS_CA_BUNDLE=" + b.arm.caFile}, j.Program.Environment...)
	env = append(env, s.environment...)
	args := append(append([]string{}, j.Program.Command...), "resource="+o.resource)
	out, err := b.pod.Application(ctx, env, append(args, s.arguments...)...)
	if err != nil {
		o.failure = fmt.Errorf("the driver: %w: %s", err, lastLines([]byte(out)))
		return
	}
	answers, err := readAnswers(out, b.pod.Entra.VerifyAccessToken)
	o.answers = append(o.answers, answers...)
	if err == nil && len(answers) == 0 {
		err = fmt.Errorf("the driver said nothing: %q", lastLines([]byte(out)))
	}
	o.failure = err
}

// judge says what the outcome was.
func (b *bench) judge(s scenario, e expectation, o observed) cell {
	c := cell{Scenario: s.name, Expected: e, Got: e.Want, Error: o.problem(),
		Requests: o.requests, Probes: o.probes, Exchanges: len(o.exchanges), Took: o.slowest()}
	if err := b.verdict(s, e, o); err != nil {
		c.Got, c.Problem = wrong, err.Error()
	}
	return c
}

func (b *bench) verdict(s scenario, e expectation, o observed) error {
	switch {
	case o.failure != nil:
		return o.failure
	case e.Want == ignored:
		if o.node == 0 || o.requests > 0 {
			return fmt.Errorf("the node's IMDS saw %d requests and the proxy %d, want only the former: %s", o.node, o.requests, o.problem())
		}
		return nil
	case o.node > 0:
		return fmt.Errorf("%d requests reached the node's IMDS", o.node)
	}
	if e.Want == varies && o.problem() == "" {
		return s.check(o)
	}
	if e.Want == refused || e.Want == varies {
		if err := refusedWith(e.Error)(o); err != nil {
			return err
		}
	}
	if e.Want != s.want {
		return nil // the check is of the ordinary outcome
	}
	return s.check(o)
}

// nodeRequests is how often the node's IMDS was asked.
func (b *bench) nodeRequests() int {
	if b.decoy != nil {
		return len(b.decoy.Requests())
	}
	return len(b.pod.Decoy.Requests())
}

// resourceFor is a resource that nobody else asks for, so that what is cached and
// counted for it is of this scenario alone.
func resourceFor(s scenario, j job) string {
	return fmt.Sprintf("https://%s-%s-%s.example.test", s.name, j.Library, strings.ReplaceAll(j.Version, ".", "-"))
}

// answered reports whether every token request in the log has its second line.
func answered(log string) bool {
	return strings.Count(log, `"received token request"`) <= strings.Count(log, `"status":`)
}

// waitUntil waits for a condition, for a while: who needs it finds out itself.
func (b *bench) waitUntil(ctx context.Context, limit time.Duration, condition func() bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
