package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"imds-oidc-proxy/test/kit/entra"
)

func (b *bench) throughputInfo() (string, error) {
	return b.throughput("--log-level=info", "--log-all-requests")
}
func (b *bench) throughputWarn() (string, error) { return b.throughput("--log-level=warn") }

// throughput returns two ratios of the proxy to the bare server, each the median over the rounds:
// that of cached answers per second, and that of the CPU time per answer.
func (b *bench) throughput(args ...string) (string, error) {
	proxy, err := b.startProxy(args...)
	if err != nil {
		return "", err
	}
	defer proxy.stop()
	answer, err := proxy.fetch(target(0))
	if err != nil {
		return "", err
	}
	bare, err := startBare(answer)
	if err != nil {
		return "", err
	}
	defer bare.stop()

	var ratios, rates, costs []float64
	for range b.rounds {
		ours, cost, err := b.loadAndCost(proxy)
		if err != nil {
			return "", err
		}
		theirs, bareCost, err := b.loadAndCost(bare)
		if err != nil {
			return "", err
		}
		ratios = append(ratios, ours.perSecond()/theirs.perSecond())
		rates = append(rates, ours.perSecond())
		costs = append(costs, float64(cost)/float64(bareCost))
	}
	return fmt.Sprintf("%.2f, %.2f (%.0f/s)", median(ratios), median(costs), median(rates)), nil
}

// loadAndCost requests one resource of s, and also returns the CPU time of s for it.
func (b *bench) loadAndCost(s *server) (loadResult, time.Duration, error) {
	before, err := s.cpuTime()
	if err != nil {
		return loadResult{}, 0, err
	}
	result, err := b.load(s, 1)
	if err != nil {
		return loadResult{}, 0, err
	}
	after, err := s.cpuTime()
	return result, after - before, err
}

// load cycles through n resources of s.
func (b *bench) load(s *server, n int) (loadResult, error) {
	return runLoad(loadSpec{Address: s.address, Targets: targets(n), Connections: connections, Requests: b.requests})
}

// stampede counts the exchanges for many concurrent first requests of one key.
func (b *bench) stampede() (string, error) {
	proxy, err := b.startProxy()
	if err != nil {
		return "", err
	}
	defer proxy.stop()
	b.idp.Reset()
	// Slow enough that all requests arrive before the first answer.
	b.idp.FailAlways(entra.FaultSlow(time.Second))
	defer b.idp.Heal()
	if _, err := runLoad(loadSpec{Address: proxy.address, Targets: targets(1), Connections: 1000, Requests: 1000}); err != nil {
		return "", err
	}
	return fmt.Sprint(b.idp.Counts().Token), nil
}

// hanging compares the p99 of cached answers while exchanges of other keys hang with the p99
// without a fault.
func (b *bench) hanging() (string, error) {
	proxy, err := b.startProxy()
	if err != nil {
		return "", err
	}
	defer proxy.stop()
	if _, err := proxy.fetch(target(0)); err != nil {
		return "", err
	}
	var ratios []float64
	for round := range b.rounds {
		normal, err := b.load(proxy, 1)
		if err != nil {
			return "", err
		}
		hung, err := b.loadWhileHanging(proxy, round)
		if err != nil {
			return "", err
		}
		ratios = append(ratios, float64(hung.P99)/float64(normal.P99))
	}
	return fmt.Sprintf("%.2f", median(ratios)), nil
}

// waiting is how many requests wait for exchanges that hang while the load runs.
const waiting = 50

func (b *bench) loadWhileHanging(proxy *server, round int) (loadResult, error) {
	b.idp.FailAlways(entra.FaultHang())
	answered := make(chan error, waiting)
	for i := range waiting {
		go func() {
			_, err := proxy.fetch(target(1 + round*waiting + i))
			answered <- err
		}()
	}
	for deadline := time.Now().Add(startTimeout); b.idp.InFlight() < waiting; {
		if time.Now().After(deadline) {
			return loadResult{}, fmt.Errorf("%d of %d exchanges are running", b.idp.InFlight(), waiting)
		}
		time.Sleep(time.Millisecond)
	}
	result, err := b.load(proxy, 1)
	b.idp.Heal()
	for range waiting {
		if fetchErr := <-answered; err == nil {
			err = fetchErr
		}
	}
	return result, err
}

// keys returns the p50 of cached answers with more and more keys in the cache.
func (b *bench) keys() (string, error) {
	proxy, err := b.startProxy()
	if err != nil {
		return "", err
	}
	defer proxy.stop()
	var shown []string
	var first time.Duration
	for _, n := range []int{1, 10, 100, 1000} {
		for _, t := range targets(n) {
			if _, err := proxy.fetch(t); err != nil {
				return "", err
			}
		}
		result, err := b.load(proxy, n)
		if err != nil {
			return "", err
		}
		if first == 0 {
			first = result.P50
		}
		shown = append(shown, fmt.Sprintf("%.2f", float64(result.P50)/float64(first)))
	}
	return strings.Join(shown, ", "), nil
}

func (b *bench) memoryIdle() (string, error) {
	return b.memory(func(*server) error { return nil })
}

func (b *bench) memorySoak() (string, error) {
	return b.memory(func(proxy *server) error {
		if _, err := proxy.fetch(target(0)); err != nil {
			return err
		}
		_, err := runLoad(loadSpec{Address: proxy.address, Targets: targets(1), Connections: connections, Requests: b.soak})
		return err
	})
}

func (b *bench) memoryKeys() (string, error) {
	return b.memory(func(proxy *server) error {
		for _, t := range targets(1000) {
			if _, err := proxy.fetch(t); err != nil {
				return err
			}
		}
		return nil
	})
}

// memory returns the proxy's resident memory after do.
func (b *bench) memory(do func(*server) error) (string, error) {
	proxy, err := b.startProxy()
	if err != nil {
		return "", err
	}
	defer proxy.stop()
	if err := do(proxy); err != nil {
		return "", err
	}
	bytes, err := proxy.resident()
	return mebibytes(bytes), err
}

func (b *bench) startToReady() (string, error) {
	var times []float64
	for range b.rounds {
		proxy, err := b.startProxy()
		if err != nil {
			return "", err
		}
		proxy.stop()
		times = append(times, proxy.ready.Seconds()*1000)
	}
	return fmt.Sprintf("%.0f ms", median(times)), nil
}

func (b *bench) binarySize() (string, error) {
	info, err := os.Stat(b.binary)
	if err != nil {
		return "", err
	}
	return mebibytes(int(info.Size())), nil
}

func mebibytes(bytes int) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }
