// Command proxy-init installs the redirect: requests of the pod to the instance metadata service
// (IMDS) go to the proxy instead. It runs as an init container, before all containers that may
// request a token. It fails closed: after any failure its exit code is not zero, so that the pod
// does not start without the redirect.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/netrules"
	"imds-oidc-proxy/internal/termlog"
)

// version is the version and the commit. It is set at build time: -ldflags "-X 'main.version=…'".
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the program. It writes the output of --help, --version and --dry-run to stdout, and
// errors and the log to stderr. It returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parse(args, getenv)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		fmt.Fprint(stdout, o.usage)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "proxy-init: %v\n", err)
		termlog.Write(o.terminationLog, terminationMessage(err, ""))
		return exitUsage
	case o.version:
		fmt.Fprintf(stdout, "proxy-init %s\n", version)
		return exitOK
	case o.dryRun:
		fmt.Fprint(stdout, netrules.NewPlan(o.config).Format(o.backend))
		return exitOK
	}
	log := logging.New(stderr, o.log)
	defer log.Sync() //nolint:errcheck // a container's stderr cannot be synced
	if err := act(ctx, o, log); err != nil {
		return report(o, log, err)
	}
	return exitOK
}

// act installs, checks, proves or removes the rules.
func act(ctx context.Context, o options, log *zap.Logger) error {
	if o.prove { // without the privileges that reading rules needs
		proof, err := netrules.Validate(ctx, o.config)
		if err != nil {
			return err
		}
		log.Info("redirect in place", append(redirectFields(o), zap.String("proven_by", string(proof)))...)
		return nil
	}
	// A check changes no rules, so it may run in a node's network namespace too.
	rules, err := netrules.Open(ctx, netrules.Options{Backend: o.backend, Force: o.force || o.check})
	if err != nil {
		return err
	}
	plan := netrules.NewPlan(o.config)
	switch {
	case o.check:
		// The port first: reading its owner needs no capability, unlike reading the rules.
		if err := netrules.CheckPort(ctx, o.config); err != nil {
			return err
		}
		if err := rules.Check(ctx, plan); err != nil {
			return err
		}
		log.Info("redirect in place", describe(o, rules)...)
		return nil
	case o.cleanup:
		if err := rules.Remove(ctx); err != nil {
			return err
		}
		log.Info("redirect removed")
		return nil
	}
	return install(ctx, o, rules, plan, log)
}

// install applies the plan and proves it.
func install(ctx context.Context, o options, rules *netrules.Ruleset, plan netrules.Plan, log *zap.Logger) error {
	if err := rules.Apply(ctx, plan); err != nil {
		return err
	}
	proof, err := prove(ctx, o, rules.Guard())
	if err != nil {
		return err
	}
	log.Info("redirect installed", append(describe(o, rules), zap.String("proven_by", string(proof)))...)
	return nil
}

// prove proves the redirect. Call it after Apply, which has read the rules back: without them
// the connection would leave the host. --verify=false skips the connection. It does not skip
// the check of the port's owner, which is a security check.
func prove(ctx context.Context, o options, guard bool) (netrules.Proof, error) {
	if o.verify {
		return netrules.Prove(ctx, o.config, guard)
	}
	return "rules (--verify=false)", netrules.CheckPort(ctx, o.config)
}

// describe returns the log fields of the redirect and of its backend.
func describe(o options, rules *netrules.Ruleset) []zap.Field {
	guard := "on"
	if !rules.Guard() {
		guard = "off: only the native backend has it"
	}
	return append(redirectFields(o), zap.String("backend", string(rules.Backend())), zap.String("backend_reason", rules.Reason()), zap.String("port_guard", guard))
}

// redirectFields returns the log fields of the redirect.
func redirectFields(o options) []zap.Field {
	fields := []zap.Field{
		zap.Stringer("metadata", o.config.Metadata),
		zap.Uint16("proxy_port", o.config.ProxyPort),
		zap.Bool("sealed", o.config.Sealed),
	}
	if !o.config.Sealed {
		fields = append(fields, zap.Uint32("exempt_uid", o.config.UID), zap.Uint32("exempt_gid", o.config.GID))
	}
	if len(o.config.Deny) > 0 {
		fields = append(fields, zap.Stringers("deny", o.config.Deny))
	}
	return fields
}
