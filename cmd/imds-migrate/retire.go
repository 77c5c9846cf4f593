package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/tools/clientcmd"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/output"
	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/report"
	"imds-oidc-proxy/internal/retire"
)

const retireUsage = `Usage: imds-migrate retire --report=FILE [flags]
       imds-migrate retire --report=FILE --filename=FILE [flags]

imds-migrate retire lists what can be removed at the end of a migration, and in which order: sidecars that
nobody asks any more, and aad-pod-identity. It prints commands, each with the checks that must succeed
before, and runs none of them: neither in the cluster nor in Azure does it change anything.
%s
Exit codes:
   0  nothing is left to remove
   1  could not look: no cluster, pods cannot be read, a file is cut off, the report is old or invalid; or
      nothing was found, but something could not be read
   2  invalid flag or command
   3  there is something to remove
   4  something is left, and none of it can be removed yet
`

// maxReport bounds the file of --report. A workload takes less than 10 KiB.
const maxReport = 64 << 20

// retireOptions is the command line of retire.
type retireOptions struct {
	planOptions
	report string // a file; empty: none
	output string
}

func parseRetire(args []string, stdout io.Writer) (*retireOptions, error) {
	o := &retireOptions{output: "text"}
	o.plan.Audience = azure.Audience
	set := flagenv.New("imds-migrate retire", nil)
	set.Group("Input")
	set.StringVar(&o.report, "report", "", "`file` with the output of imds-migrate report --output=json, at most a day old, or - (standard input); without it, no sidecar is removed")
	set.StringSliceVarP(&o.files, "filename", "f", nil, "`file`, directory or - (standard input) with exported objects, in place of a cluster; repeatable")
	set.BoolVarP(&o.all, "all-namespaces", "A", false, "all namespaces but the system's, which is the default")
	set.Group("Output")
	flagenv.VarP(set.FlagSet, &o.output, "output", "o", flagenv.OneOf(output.RetireFormats...), "`format`: "+strings.Join(output.RetireFormats, ", ")+"; sh is a script, and patch a kustomize component with the changes of workloads")
	set.BoolVar(&o.exitZero, "exit-zero", false, "exit with 0 in place of 3 and 4")
	o.cluster.addFlags(set)
	set.Usage = func() { fmt.Fprintf(stdout, retireUsage, set.Usages()) }
	if err := set.Parse(args, nil); err != nil {
		return nil, err
	}
	if o.report == stdinName && slices.Contains(o.files, stdinName) {
		return nil, errors.New("--report and --filename must not both be -: standard input can be read once")
	}
	if set.Changed(clientcmd.FlagClusterName) {
		return nil, errors.New("--cluster must not be set: the commands of helm have no such flag; set --context")
	}
	return o, o.validate(set.FlagSet)
}

// runRetire is the command retire.
func runRetire(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parseRetire(args, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return exitUsage
	}
	r, err := o.retire(ctx, stdin, stderr)
	if err == nil {
		err = output.WriteRetirement(stdout, r, o.output)
	}
	if err != nil {
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return plan.ExitNotRead
	}
	if code := r.ExitCode(); code == plan.ExitNotRead || !o.exitZero {
		return code
	}
	return exitOK
}

func (o *retireOptions) retire(ctx context.Context, stdin io.Reader, stderr io.Writer) (*retire.Retirement, error) {
	found := retire.Options{Namespace: o.survey.Namespace, Now: time.Now(), Flags: o.cluster.flags()}
	var err error
	if o.report != "" {
		if found.Report, err = readReport(o.report, stdin); err != nil {
			return nil, err
		}
	}
	s, err := o.read(ctx, stdin, stderr)
	if err != nil {
		return nil, err
	}
	r, err := retire.New(s, plan.New(s, o.plan), found)
	if err != nil {
		return nil, flagenv.Errorf("report", "%s: %v", o.report, err)
	}
	return r, nil
}

// readReport reads the JSON of imds-migrate report.
func readReport(path string, stdin io.Reader) (*report.Report, error) {
	in := stdin
	if path != stdinName {
		opened, err := (&file{path: path}).open()
		if err != nil {
			return nil, err
		}
		defer opened.Close()
		in = opened
	}
	const remedy = "must be the output of imds-migrate report --output=json, of this version"
	var r report.Report
	decoder := json.NewDecoder(io.LimitReader(in, maxReport))
	if err := decoder.Decode(&r); err != nil {
		return nil, flagenv.Errorf("report", "%s: %s: %s", path, remedy, strings.Join(strings.Fields(err.Error()), " "))
	}
	if r.Schema != report.Schema || r.Time.IsZero() || decoder.More() {
		return nil, flagenv.Errorf("report", "%s: %s", path, remedy)
	}
	return &r, nil
}
