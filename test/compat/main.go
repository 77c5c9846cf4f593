// Command compat tests the proxy with real clients and writes the results to
// docs/compatibility.md.
//
// The clients are unmodified libraries from their registries. The files in
// drivers/*/versions pin their versions and dependencies. manifest.json lists the clients
// and their known limits. Each library has a small driver with name=value arguments:
//
//	credential   managed: the library's managed identity credential; default: its
//	             default chain; fallthrough: a chain of managed and a fixed token
//	resource     resource of the token (the scope is the resource with /.default)
//	client_id, object_id, resource_id   the identity; at most one
//	calls        number of calls of the same object (1)
//	pause        seconds between calls (0)
//
// A driver prints one line for each call: {"token", "expires_on", "ms"} or {"error",
// "message", "ms"}. Each worker process has a pod in its own network namespace; one of these
// pods has no redirect. The exit code is 1 if a client differs from the manifest.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	if len(args) > 0 && args[0] == "worker" {
		code, err := beWorker(ctx, args[1:])
		if err != nil {
			fmt.Fprintln(os.Stderr, "compat: worker:", err)
		}
		return code
	}
	if err := matrix(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "compat:", err)
		return 1
	}
	return 0
}

type options struct {
	only, scenario, cache, document string
	binding                         bool
	workers                         int
}

// matrix reads the flags and the manifest, and runs the tests.
func matrix(ctx context.Context, args []string) error {
	var opts options
	flags := pflag.NewFlagSet("compat", pflag.ContinueOnError)
	flags.StringVar(&opts.only, "only", "", "test only this family of clients, or FAMILY/LIBRARY; the page is not written")
	flags.StringVar(&opts.scenario, "scenario", "", "test only the scenarios whose names begin with this; the page is not written")
	flags.StringVar(&opts.cache, "cache", ".cache/compat", "directory of installed clients")
	flags.StringVar(&opts.document, "document", "docs/compatibility.md", "page to write")
	flags.BoolVar(&opts.binding, "identity-binding", false, "test in pods with an identity binding of AKS; the page is not written")
	flags.IntVar(&opts.workers, "workers", 10, "number of concurrent pods; they mostly wait")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return errors.New("run as root: it makes network namespaces and runs programs as several users")
	}
	m, err := loadManifest()
	if err != nil {
		return err
	}
	if opts.only != "" {
		if m, err = m.only(opts.only); err != nil {
			return err
		}
	}
	return opts.makeMatrix(ctx, m)
}

// makeMatrix installs the clients, tests them and writes the report.
func (o options) makeMatrix(ctx context.Context, m manifest) error {
	began := time.Now()
	i, err := o.installer()
	if err != nil {
		return err
	}
	if err := need(ctx, m); err != nil {
		return err
	}
	if err := i.buildProxy(ctx); err != nil {
		return err
	}
	all, err := i.installAll(ctx, m, o.places())
	if err != nil {
		return err
	}
	fmt.Printf("installed in %s\n", time.Since(began).Round(time.Second))
	results, err := o.tryAll(ctx, i, o.selected(all.jobs))
	if err != nil {
		return err
	}
	report := newReport(m, results, all, o.places())
	report.scenario = o.scenario
	fmt.Printf("%s, in %s\n", report.summary(), time.Since(began).Round(time.Second))
	if o.only == "" && o.scenario == "" && !o.binding {
		if err := os.WriteFile(o.document, report.markdown(), 0o644); err != nil {
			return err
		}
		fmt.Println("wrote", o.document)
	}
	return report.err()
}

// places returns the places in which each client is tested.
func (o options) places() []place {
	if o.binding {
		return []place{bound}
	}
	return []place{redirected, direct}
}

func (o options) installer() (*installer, error) {
	cache, err := filepath.Abs(o.cache)
	if err != nil {
		return nil, err
	}
	drivers, err := filepath.Abs("test/compat/drivers")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(drivers); err != nil {
		return nil, fmt.Errorf("run compat in the root directory of the repository: %w", err)
	}
	return &installer{cache: cache, drivers: drivers}, os.MkdirAll(filepath.Join(cache, "bin"), 0o755)
}

// need installs the commands of the system that the tests need.
func need(ctx context.Context, m manifest) error {
	args := []string{"ip", "setpriv"}
	for _, f := range m.Families {
		args = append(args, f.Needs...)
	}
	cmd := exec.CommandContext(ctx, "tools/need", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// buildProxy builds the programs under test into the cache, where the pod's users can run
// them.
func (i *installer) buildProxy(ctx context.Context) error {
	for _, name := range []string{"proxy", "proxy-init"} {
		if err := execute(ctx, "", "go", "build", "-buildvcs=false", "-o", filepath.Join(i.cache, "bin", name), "./cmd/"+name); err != nil {
			return err
		}
	}
	return nil
}
