package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/verify"
)

const verifyUsage = `Usage: imds-migrate verify [flags] [KIND/NAME]...

imds-migrate verify checks after a change that pods have the sidecar as requested, that the redirect was
installed, and that proxy check succeeds in each pod, which requests one token. Without a workload, such
as deploy/web, it checks all workloads of the namespace that request the sidecar. It changes nothing.
%s
Exit codes:
   0  all pods have the sidecar and get tokens
   1  could not look: no cluster, no such workload, or pods cannot be read
   2  invalid flag or command
   4  a pod has no sidecar, or gets no token; or, without a workload, a kind could not be read
`

// verifyOptions is the command line of verify.
type verifyOptions struct {
	cluster clusterFlags
	config  verify.Config
	output  string
}

func parseVerify(args []string, stdout io.Writer) (*verifyOptions, error) {
	o := &verifyOptions{output: "text", config: verify.Config{Timeout: verify.DefaultTimeout}}
	set := flagenv.New("imds-migrate verify", nil)
	set.Arguments = true
	set.Group("Checks")
	set.StringVar(&o.config.Resource, "resource", "", "`resource` of the token that proxy check requests")
	set.DurationVar(&o.config.Timeout, "timeout", o.config.Timeout, "the longest time for proxy check in one pod")
	set.Group("Output")
	flagenv.VarP(set.FlagSet, &o.output, "output", "o", flagenv.OneOf("text", "json"), "`format`: text or json")
	o.cluster.addFlags(set)
	set.Usage = func() { fmt.Fprintf(stdout, verifyUsage, set.Usages()) }
	if err := set.Parse(args, nil); err != nil {
		return nil, err
	}
	if o.config.Timeout <= 0 {
		return nil, flagenv.Errorf("timeout", "%q: must be more than zero", o.config.Timeout)
	}
	o.config.Workloads = set.Args()
	return o, nil
}

// runVerify is the command verify.
func runVerify(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseVerify(args, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return exitUsage
	}
	cluster, err := o.cluster.connect()
	var lines []verify.Line
	if err == nil {
		o.config.Namespace = cmp.Or(o.cluster.namespace(), cluster.namespace)
		shown := newProgress(stderr)
		o.config.Progress = shown.show
		lines, err = verify.Run(ctx, cluster, verify.RemoteExecutor{Config: cluster.config}, o.config)
		shown.end()
		if err != nil {
			err = cmp.Or(context.Cause(ctx), err) // such as interrupt
		}
	}
	if err == nil {
		err = o.print(stdout, lines)
	}
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return plan.ExitNotRead
	case verify.Failed(lines):
		return plan.ExitBlocked
	}
	return exitOK
}

func (o *verifyOptions) print(stdout io.Writer, lines []verify.Line) error {
	if o.output == "json" {
		encoder := json.NewEncoder(stdout)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return encoder.Encode(lines)
	}
	for _, l := range lines {
		status, hint := "ok", ""
		if !l.OK {
			status, hint = "fault", " -> "+l.Hint
		}
		if _, err := fmt.Fprintln(stdout, oneLine(fmt.Sprintf("%-6s%s %s: %s%s", status, l.Workload, l.Pod, l.Text, hint))); err != nil {
			return err
		}
	}
	return nil
}
