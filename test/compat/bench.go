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
	// driverTimeout bounds the run of a driver. On a busy machine a JVM may take half of
	// this time to start.
	driverTimeout = 2 * time.Minute

	// settleTimeout bounds the wait for the log line of an answer that the client already
	// has.
	settleTimeout = 10 * time.Second

	pollInterval = 20 * time.Millisecond
)

// bench runs clients in pods in the network namespace of this process.
type bench struct {
	where place
	keys  *entra.Keys
	arm   *resourceManager
	decoy *pod.Decoy // nil: the pod has its own decoy, because it has a redirect
	cfg   pod.Config
	pod   *pod.Pod
	home  string
}

func newBench(cache string, where place) (*bench, error) {
	b := &bench{where: where, keys: entra.NewKeys()}
	b.cfg = pod.Config{
		Proxy: filepath.Join(cache, "bin", "proxy"),
		// The object ID is not mapped: the proxy finds it in a token.
		ProxyArgs: []string{"--log-level=debug", "--identity=" + otherResourceID + "=" + otherClientID},
		Entra:     entra.Config{Keys: b.keys},
	}
	var err error
	if b.arm, err = startResourceManager(); err != nil {
		return nil, err
	}
	if where != direct {
		b.cfg.IdentityBinding = where == bound
		b.cfg.ProxyInit = filepath.Join(cache, "bin", "proxy-init")
		return b, nil
	}
	b.cfg.ProxyArgs = append(b.cfg.ProxyArgs, "--app-service-header="+podSecret)
	// A stand-in for the node's IMDS, for clients that ignore the environment variable.
	b.decoy, err = pod.StartDecoy()
	return b, err
}

func (b *bench) close() {
	b.arm.close()
	if b.decoy != nil {
		b.decoy.Close()
	}
}

// try runs one client in every scenario of this place. All scenarios share a new pod, unless the
// client has a fixed resource.
func (b *bench) try(ctx context.Context, m manifest, j job) result {
	r := result{Family: j.Family, Library: j.Library, Version: j.Version, Where: j.Where}
	l, err := m.library(j.Family, j.Library)
	if err == nil {
		err = b.startPod(ctx)
	}
	defer b.stopPod()
	for n, s := range b.scenariosOf(j) {
		if n > 0 && j.Resource != "" && err == nil {
			b.stopPod()
			err = b.startPod(ctx)
		}
		if err != nil {
			break
		}
		e := l.expected(s, j.Version)
		c := cell{Scenario: s.name, Got: absent, Expected: e}
		if e.Want != absent {
			c = b.judge(s, e, b.run(ctx, s, j))
		}
		r.Cells = append(r.Cells, c)
	}
	if err != nil {
		r.Failure = err.Error()
	}
	return r
}

// scenariosOf returns the scenarios of a job in this place.
func (b *bench) scenariosOf(j job) []scenario {
	return slices.DeleteFunc(b.where.scenarios(), func(s scenario) bool {
		return j.Scenarios != nil && !slices.Contains(j.Scenarios, s.name)
	})
}

// startPod starts a pod and makes the application's home directory.
func (b *bench) startPod(ctx context.Context) error {
	var err error
	if b.pod, err = pod.Start(ctx, b.cfg); err != nil {
		return err
	}
	other := entra.Application{ClientID: otherClientID, ObjectID: otherObjectID, Credentials: []entra.FederatedCredential{{Subject: pod.Subject}}}
	if b.pod.Binding != nil {
		b.pod.Binding.Bind(other)
	} else {
		b.pod.Entra.AddApplication(other)
	}
	b.pod.Entra.AddResource("https://*.example.test")
	b.arm.trust(b.pod.Entra)
	if b.home, err = os.MkdirTemp("", "home-"); err != nil {
		return err
	}
	return os.Chown(b.home, pod.ApplicationUID, pod.ApplicationUID)
}

// stopPod ends the pod, if there is one, and removes the application's home directory.
func (b *bench) stopPod() {
	if b.pod != nil {
		b.pod.Stop()
	}
	b.pod = nil
	os.RemoveAll(b.home)
	b.home = ""
}

// run runs a client in a scenario and records what happens.
func (b *bench) run(ctx context.Context, s scenario, j job) observed {
	o := observed{resource: resourceFor(s, j), began: time.Now(), hidesExpiry: j.HidesExpiry}
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

// quietIsOver reports whether the proxy may send requests to Entra again. After a 429 it
// backs off for up to 1.5 times Entra's Retry-After, for all resources of the client ID
// (docs/adr/0024), which the next scenario uses too.
func (b *bench) quietIsOver() bool {
	return !slices.ContainsFunc(b.pod.Entra.Exchanges(), func(x entra.Exchange) bool {
		return x.Status == http.StatusTooManyRequests && time.Since(x.Time) < quietTime
	})
}

func (b *bench) exchangesFor(resource string) []entra.Exchange {
	return slices.DeleteFunc(b.pod.Entra.Exchanges(), func(x entra.Exchange) bool { return x.Resource != resource })
}

// faultsFor limits a fault to the exchanges of one resource, because the proxy may still
// refresh the token of the previous scenario.
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
		err = fmt.Errorf("the driver printed nothing: %q", lastLines([]byte(out)))
	}
	o.failure = err
}

// judge returns the cell for what happened.
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
		return nil // the check is only for the ordinary outcome
	}
	return s.check(o)
}

// nodeRequests returns the number of requests that reached the node's IMDS.
func (b *bench) nodeRequests() int {
	if b.decoy != nil {
		return len(b.decoy.Requests())
	}
	return len(b.pod.Decoy.Requests())
}

// resourceFor returns a resource that only this scenario of this job uses, so that the cache
// and the counts have nothing of other scenarios. If the client has a fixed resource, [bench.try]
// starts a pod for each scenario instead.
func resourceFor(s scenario, j job) string {
	if j.Resource != "" {
		return j.Resource
	}
	return fmt.Sprintf("https://%s-%s-%s.example.test", s.name, j.Library, strings.ReplaceAll(j.Version, ".", "-"))
}

// answered reports whether the log has the line about the answer for every token request.
func answered(log string) bool {
	return strings.Count(log, `"received token request"`) <= strings.Count(log, `"status":`)
}

// waitUntil waits until a condition holds, but not longer than limit. The caller must check
// the condition itself if it depends on it.
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
