package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// installsAtOnce is the number of concurrent installs. They mostly wait for the network.
const installsAtOnce = 2

// installed has all clients after their installation.
type installed struct {
	jobs     []job
	runtimes []string
	shown    map[client]string
}

// installAll installs every client.
func (i *installer) installAll(ctx context.Context, m manifest, places []place) (installed, error) {
	all := installed{shown: map[client]string{}}
	for _, f := range m.Families {
		if f.Runtime != nil {
			all.runtimes = append(all.runtimes, f.Title+" "+versionFrom(ctx, f.Runtime))
		}
	}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(installsAtOnce)
	for _, f := range m.Families {
		for _, l := range f.Libraries {
			for _, v := range l.Versions {
				group.Go(func() error {
					p, err := i.installAndReport(ctx, f, l, v)
					if err != nil {
						return err
					}
					mu.Lock()
					defer mu.Unlock()
					for _, where := range places {
						all.jobs = append(all.jobs, job{Family: f.Name, Library: l.Name, Version: v.Version, Where: where, Program: p, Resource: l.Resource, HidesExpiry: l.HidesExpiry})
					}
					if v.System != nil {
						all.shown[client{f.Name, l.Name, v.Version}] = versionFrom(ctx, v.System)
					}
					return nil
				})
			}
		}
	}
	return all, group.Wait()
}

// installAndReport installs a version, and prints how long it took unless it was in the cache.
func (i *installer) installAndReport(ctx context.Context, f family, l library, v version) (program, error) {
	began := time.Now()
	p, err := i.install(ctx, f, l, v)
	if took := time.Since(began); err == nil && took > time.Second {
		fmt.Printf("installed %s %s in %s\n", l.Name, v.Version, took.Round(time.Second))
	}
	return p, err
}

// versionFrom returns the first version number in the output of a command.
func versionFrom(ctx context.Context, command []string) string {
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	found := regexp.MustCompile(`\d+\.\d+[0-9a-z.]*`).Find(out)
	if err != nil || found == nil {
		return "of unknown version"
	}
	return string(found)
}

// selected returns the jobs with the scenarios of the flag --scenario.
func (o options) selected(jobs []job) []job {
	if o.scenario == "" {
		return jobs
	}
	var kept []job
	for _, j := range jobs {
		for _, s := range j.Where.scenarios() {
			if strings.HasPrefix(s.name, o.scenario) {
				j.Scenarios = append(j.Scenarios, s.name)
			}
		}
		if j.Scenarios != nil {
			kept = append(kept, j)
		}
	}
	return kept
}

// tryAll runs the jobs, with separate workers for each place. It runs failed scenarios a second
// time, one client at a time, because some clients have a timeout of 300 ms for their probe,
// which is too short on a machine that runs a dozen clients at the same time.
func (o options) tryAll(ctx context.Context, i *installer, jobs []job) ([]result, error) {
	results, err := i.tryOnce(ctx, jobs, map[place]int{redirected: o.workers, direct: o.workers, bound: o.workers})
	if err != nil {
		return nil, err
	}
	var again []job
	for _, j := range jobs {
		for _, r := range results {
			if r.of(j) && len(r.wrong()) > 0 {
				j.Scenarios = r.wrong()
				again = append(again, j)
			}
		}
	}
	if len(again) == 0 {
		return results, nil
	}
	fmt.Println("trying again, one client at a time:")
	seconds, err := i.tryOnce(ctx, again, map[place]int{redirected: 1, direct: 1, bound: 1})
	for _, second := range seconds {
		for n := range results {
			results[n].replaceCells(second)
		}
	}
	return results, err
}

// tryOnce runs the jobs, each in one of the workers of its place.
func (i *installer) tryOnce(ctx context.Context, jobs []job, workers map[place]int) ([]result, error) {
	var mu sync.Mutex
	var results []result
	group, ctx := errgroup.WithContext(ctx)
	for where, most := range workers {
		queue := make(chan job, len(jobs))
		for _, j := range jobs {
			if j.Where == where {
				queue <- j
			}
		}
		close(queue)
		for range min(most, len(queue)) {
			group.Go(func() error {
				return i.work(ctx, where, queue, func(r result) {
					mu.Lock()
					defer mu.Unlock()
					results = append(results, r)
					printResult(r)
				})
			})
		}
	}
	return results, group.Wait()
}

// work starts a worker and gives it jobs until the queue is empty.
func (i *installer) work(ctx context.Context, where place, queue <-chan job, done func(result)) error {
	w, err := startWorker(ctx, i.cache, i.drivers, string(where))
	if err != nil {
		return err
	}
	for j := range queue {
		if ctx.Err() != nil {
			break
		}
		r, err := w.do(j)
		if err != nil {
			return errors.Join(fmt.Errorf("%s %s: the worker ended: %w", j.Library, j.Version, err), w.stop())
		}
		done(r)
	}
	return errors.Join(ctx.Err(), w.stop())
}

func printResult(r result) {
	fmt.Printf("%-22s %-10s", r.Library, r.Version)
	good := 0
	for _, c := range r.Cells {
		if c.ok() {
			good++
		}
	}
	fmt.Printf(" %-10s %d of %d as expected %s\n", r.Where, good, len(r.Cells), r.Failure)
	for _, c := range r.Cells {
		if !c.ok() {
			fmt.Printf("    %s: %s, want %s: %s\n", c.Scenario, c.Got, c.Expected.Want, c.Problem)
		}
	}
}
