// Proxy-init redirects the pod's requests for the instance metadata service to
// the proxy. It runs once, as an init container, before anything that might ask
// for a token; any failure is a non-zero exit, so that the pod does not start
// without the redirect.
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
)

// version is set at build time: -ldflags "-X main.version=…".
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the program: stdout gets what was asked for, stderr the log.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	o, err := parse(args, getenv)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		fmt.Fprint(stdout, o.usage)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "proxy-init: %v\n", err)
		writeTermination(o.terminationLog, err.Error())
		return exitUsage
	case o.version:
		fmt.Fprintf(stdout, "proxy-init %s\n", version)
		return exitOK
	case o.dryRun:
		fmt.Fprint(stdout, netrules.NewPlan(o.config))
		return exitOK
	}
	log := logging.New(stderr, o.log)
	defer log.Sync() //nolint:errcheck // a container's stderr cannot be synced
	if err := act(ctx, o, log); err != nil {
		return report(o, log, err)
	}
	return exitOK
}

// act does what changes or reads the namespace's rules.
func act(ctx context.Context, o options, log *zap.Logger) error {
	// A check changes nothing, and so is harmless on a node too.
	rules, err := netrules.Open(ctx, netrules.Options{Mode: o.mode, Force: o.force || o.check})
	if err != nil {
		return err
	}
	log.Debug("iptables backend chosen", zap.String("backend", string(rules.Mode())), zap.String("reason", rules.Reason()))
	if w := rules.Warning(); w != "" {
		log.Warn("rules of the other iptables backend cannot be seen", zap.String("detail", w))
	}
	plan := netrules.NewPlan(o.config)
	switch {
	case o.check:
		// First: reading who listens takes no capability, and reading the rules may.
		if err := netrules.CheckPort(o.config); err != nil {
			return err
		}
		if err := rules.Check(plan); err != nil {
			return err
		}
		log.Info("redirect in place", describe(o, rules)...)
		return nil
	case o.cleanup:
		if err := rules.Remove(ctx); err != nil {
			return err
		}
		log.Info("redirect removed", zap.String("backend", string(rules.Mode())))
		return nil
	}
	return install(ctx, o, rules, plan, log)
}

// install applies the plan and proves it.
func install(ctx context.Context, o options, rules *netrules.Ruleset, plan netrules.Plan, log *zap.Logger) error {
	if err := rules.Apply(ctx, plan); err != nil {
		return err
	}
	proof, err := prove(ctx, o)
	if err != nil {
		return err
	}
	log.Info("redirect installed", append(describe(o, rules), zap.String("proven_by", string(proof)))...)
	return nil
}

// prove is called after Apply has read the rules back, so that the connection that
// proves them stays on this host. --verify=false skips the connection, and not the check of who listens at
// the proxy's port, which is a security check.
func prove(ctx context.Context, o options) (netrules.Proof, error) {
	if o.verify {
		return netrules.Prove(ctx, o.config)
	}
	return "rules (--verify=false)", netrules.CheckPort(o.config)
}

// describe is what the log says of the redirect.
func describe(o options, rules *netrules.Ruleset) []zap.Field {
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
	return append(fields, zap.String("backend", string(rules.Mode())), zap.String("backend_reason", rules.Reason()))
}
