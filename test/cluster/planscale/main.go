// Command planscale measures imds-migrate plan in a large cluster (make bench-plan): on a real API server
// it creates 5,000 workloads in 500 namespaces, lists all kinds as a plan does, and runs the plan, by turns.
// It fails if the plan's own time is more than twice the time of the lists, if its memory exceeds 200 MiB,
// or if it lists a kind more than once.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"imds-oidc-proxy/test/cluster"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	flags := flag.NewFlagSet("planscale", flag.ContinueOnError)
	n := flags.Int("n", 5, "how many times to run the plan")
	namespaces := flags.Int("namespaces", 500, "how many namespaces, with ten workloads each")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err == nil && (*n < 1 || *namespaces < 1):
		fmt.Fprintln(os.Stderr, "planscale: -n and -namespaces must be at least 1")
		return 2
	case err != nil:
		return 2
	}
	return cluster.Run("planscale", cluster.Config{Bare: true, Prepare: prepare}, func(c *cluster.Cluster) error {
		b, err := newBench(c, *namespaces)
		if err != nil {
			return err
		}
		return b.run(*n)
	})
}

// programVar is the environment variable with the path of imds-migrate.
const programVar = "PLANSCALE_PROGRAM"

func prepare(dir string) ([]string, error) {
	program := filepath.Join(dir, "imds-migrate")
	return []string{programVar + "=" + program}, cluster.Build(program, "../..", "./cmd/imds-migrate")
}
