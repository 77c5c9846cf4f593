// Command bench measures the proxy: its throughput, as a ratio to a bare net/http server in the
// same run, and its memory and start time. It prints one table.
//
// Everything runs on loopback, with a bounded number of requests. The proxy is the real binary,
// Entra is the fake of test/kit/entra, and a separate process sends the requests. A ratio is the
// median of several rounds that alternate between the two servers, so that a change of the
// machine's speed affects both in the same way.
package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/spf13/pflag"
)

func main() {
	if err := dispatch(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// dispatch runs the program, or one of the child processes that it starts.
func dispatch() error {
	if len(os.Args) == 2 && os.Args[1] == "load" {
		return loadMain(os.Stdin, os.Stdout)
	}
	if len(os.Args) == 2 && os.Args[1] == "bare" {
		return bareMain(os.Stdin, os.Stdout)
	}
	flags := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	binary := flags.String("proxy", "bin/proxy", "the proxy to measure")
	rounds := flags.Int("rounds", 5, "rounds whose median is the ratio")
	requests := flags.Int("requests", 60_000, "requests of one round")
	soak := flags.Int("soak", 1_000_000, "cached answers before the memory is measured")
	if err := flags.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return nil
		}
		return err
	}
	b, err := newBench(*binary)
	if err != nil {
		return err
	}
	defer b.close()
	b.rounds, b.requests, b.soak = *rounds, *requests, *soak
	return b.printAll()
}

// row is one line of the table.
type row struct {
	what, target string
	measure      func() (string, error)
}

func (b *bench) printAll() error {
	rows := []row{
		{"cached answers/s, one info line each, / bare net/http; CPU time", "≥ 0.75, ≤ 1.25", b.throughputInfo},
		{"the same with --log-level=warn", "≥ 0.85, ≤ 1.15", b.throughputWarn},
		{"allocations of the handler on a cache hit, beyond net/http's", "few", b.allocations},
		{"exchanges for 1,000 concurrent first requests of one key", "1", b.stampede},
		{"p99 of cached answers while exchanges hang / without a fault", "≤ 1.5", b.hanging},
		{"p50 with 1, 10, 100, 1,000 cached keys, relative to 1", "flat", b.keys},
		{"resident memory idle", "≤ 16 MiB", b.memoryIdle},
		{"resident memory after many cached answers (--soak)", "≤ 20 MiB", b.memorySoak},
		{"resident memory with 1,000 keys", "≤ 24 MiB", b.memoryKeys},
		{"start to ready", "≤ 50 ms", b.startToReady},
		{"stripped binary", "≤ 14 MiB", b.binarySize},
	}
	const columns = "%-65s%-16s%s\n"
	fmt.Printf(columns, "what", "target", "measured")
	for _, r := range rows {
		value, err := r.measure()
		if err != nil {
			return fmt.Errorf("%s: %w", r.what, err)
		}
		fmt.Printf(columns, r.what, r.target, value)
	}
	return nil
}

// bareAnswer is the answer of the bare server: header and body of an answer of the proxy.
type bareAnswer struct {
	Header http.Header
	Body   string
}
