// Command bench measures the proxy: its speed, as ratios to a bare net/http server
// in the same run, and what it takes of memory and time. It prints one table.
//
// Everything runs on loopback, bounded in count: the proxy is the real binary, Entra
// is the stand-in of test/kit/entra, the load comes from a process of its own. A ratio is
// the median of several rounds that take turns, so that a machine whose speed drifts
// moves both sides alike.
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

// dispatch is the program, or one of the processes that it starts.
func dispatch() error {
	if len(os.Args) == 2 && os.Args[1] == "load" {
		return loadMain(os.Stdin, os.Stdout)
	}
	if len(os.Args) == 2 && os.Args[1] == "bare" {
		return bareMain(os.Stdin, os.Stdout)
	}
	flags := pflag.NewFlagSet("bench", pflag.ContinueOnError)
	binary := flags.String("proxy", "bin/proxy", "the proxy to measure")
	rounds := flags.Int("rounds", 5, "rounds that the ratios are the median of")
	requests := flags.Int("requests", 60_000, "requests of one round")
	soak := flags.Int("soak", 1_000_000, "cached answers before memory is read again")
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

// row is one line of the table. It is measured when its turn comes.
type row struct {
	what, target string
	measure      func() (string, error)
}

func (b *bench) printAll() error {
	rows := []row{
		{"cached answers/s, one info line each, / bare net/http; CPU time", "≥ 0.75, ≤ 1.25", b.throughputInfo},
		{"the same with --log-level=warn", "≥ 0.85, ≤ 1.15", b.throughputWarn},
		{"allocations of the handler on a hit, over net/http's own", "few", b.allocations},
		{"exchanges for 1,000 concurrent first requests of one key", "1", b.stampede},
		{"p99 of cached answers while exchanges hang / with Entra well", "≤ 1.5", b.hanging},
		{"p50 with 1, 10, 100, 1,000 cached keys, relative to 1", "flat", b.keys},
		{"resident memory idle", "≤ 16 MiB", b.memoryIdle},
		{"resident memory after the soak of cached answers", "≤ 20 MiB", b.memorySoak},
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

// bareAnswer is what the bare server is told to say: the proxy's own headers and
// bytes.
type bareAnswer struct {
	Header http.Header
	Body   string
}
