// Command compat tries every client that people use against the proxy, in pods of
// its own, and writes what happened to docs/compatibility.md.
//
// The clients are the real libraries, from their registries, pinned by the lock
// files in drivers/*/versions and named, with what each is known not to do, in
// manifest.json. A small driver for each library takes name=value arguments:
//
//	credential   managed: the library's managed identity credential; default: its
//	             default chain; fallthrough: a chain of managed and a fixed token
//	resource     what to ask a token for (the scope is this and /.default)
//	client_id, object_id, resource_id   which identity; at most one
//	calls        how often to ask the same object (1)
//	pause        seconds between calls (0)
//
// and prints one line for each call, {"token", "expires_on", "ms"} or {"error",
// "message", "ms"}. Some pods have the redirect, one has not; each is in the
// network namespace of a worker process. The exit code is 1 when a client did not
// do what the manifest says.
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
	only, cache, document string
	workers               int
}

// matrix reads the flags and the manifest, and makes the matrix.
func matrix(ctx context.Context, args []string) error {
	var opts options
	flags := pflag.NewFlagSet("compat", pflag.ContinueOnError)
	flags.StringVar(&opts.only, "only", "", "one family of clients alone; nothing is written then")
	flags.StringVar(&opts.cache, "cache", ".cache/compat", "where installed clients are kept")
	flags.StringVar(&opts.document, "document", "docs/compatibility.md", "what to write")
	flags.IntVar(&opts.workers, "workers", 10, "pods at a time; they wait more than they work")
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
		f, err := m.family(opts.only)
		if err != nil {
			return err
		}
		m.Families = []family{f}
	}
	return opts.makeMatrix(ctx, m)
}

// makeMatrix installs the clients, tries them, and reports.
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
	all, err := i.installAll(ctx, m)
	if err != nil {
		return err
	}
	fmt.Printf("installed in %s\n", time.Since(began).Round(time.Second))
	results, err := o.tryAll(ctx, i, all.jobs)
	if err != nil {
		return err
	}
	report := newReport(m, results, all)
	fmt.Printf("%s, in %s\n", report.summary(), time.Since(began).Round(time.Second))
	if o.only == "" {
		if err := os.WriteFile(o.document, report.markdown(), 0o644); err != nil {
			return err
		}
		fmt.Println("wrote", o.document)
	}
	return report.err()
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
		return nil, fmt.Errorf("run it from the repository's root: %w", err)
	}
	return &installer{cache: cache, drivers: drivers}, os.MkdirAll(filepath.Join(cache, "bin"), 0o755)
}

// need has the system's own commands installed.
func need(ctx context.Context, m manifest) error {
	args := []string{"ip", "iptables-nft", "setpriv"}
	for _, f := range m.Families {
		args = append(args, f.Needs...)
	}
	cmd := exec.CommandContext(ctx, "tools/need", args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// buildProxy builds what is tried, next to the clients, where the pod's users can
// run it.
func (i *installer) buildProxy(ctx context.Context) error {
	for _, name := range []string{"proxy", "proxy-init"} {
		if err := execute(ctx, "", "go", "build", "-buildvcs=false", "-o", filepath.Join(i.cache, "bin", name), "./cmd/"+name); err != nil {
			return err
		}
	}
	return nil
}
