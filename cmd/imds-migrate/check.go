package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/preflight"
)

const checkUsage = `Usage: imds-migrate check [flags]
       imds-migrate check --pre --namespace=NAMESPACE [flags]

imds-migrate check checks whether a cluster and its namespaces are ready for the sidecar, and whether
pods that request it have it. With --pre it checks before the installation. It changes nothing: pods
are created as dry runs, which the API server does not store.
%s
Exit codes:
   0  no fault and no warning
   1  could not look: no cluster, or pods cannot be read
   2  invalid flag or command
   3  warnings alone
   4  a fault
`

// issuerTimeout limits each request for a document of the issuer.
const issuerTimeout = 10 * time.Second

// checkOptions is the command line of check.
type checkOptions struct {
	cluster  clusterFlags
	config   preflight.Config
	output   string
	exitZero bool
}

func parseCheck(args []string, stdout io.Writer) (*checkOptions, error) {
	o := &checkOptions{output: "text"}
	set := flagenv.New("imds-migrate check", nil)
	set.Group("Checks")
	set.BoolVar(&o.config.Pre, "pre", false, "check before the installation: the webhook may be missing")
	set.StringVar(&o.config.Inject.ProxyImage, "proxy-image", "", "`image` of the proxy; default: that of the webhook")
	set.StringVar(&o.config.Inject.ProxyInitImage, "proxy-init-image", "", "`image` of proxy-init; default: that of the webhook")
	set.Group("Output")
	flagenv.VarP(set.FlagSet, &o.output, "output", "o", flagenv.OneOf("text", "short", "json"), "`format`: text, short (without what is ok) or json")
	set.BoolVar(&o.exitZero, "exit-zero", false, "exit with 0 in place of 3 and 4")
	o.cluster.addFlags(set)
	set.Usage = func() { fmt.Fprintf(stdout, checkUsage, set.Usages()) }
	if err := set.Parse(args, nil); err != nil {
		return nil, err
	}
	if (o.config.Inject.ProxyImage == "") != (o.config.Inject.ProxyInitImage == "") {
		return nil, errors.New("--proxy-image and --proxy-init-image must be set together")
	}
	if namespace := o.cluster.namespace(); namespace != "" {
		o.config.Namespaces = []string{namespace}
	}
	return o, nil
}

// runCheck is the command check.
func runCheck(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseCheck(args, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return exitUsage
	}
	cluster, err := o.cluster.connect()
	var results []preflight.Result
	if err == nil {
		shown := newProgress(stderr)
		o.config.Now, o.config.HTTP, o.config.Progress = time.Now(), &http.Client{Timeout: issuerTimeout}, shown.show
		results, err = preflight.Run(ctx, cluster, o.config)
		shown.end()
	}
	if err != nil {
		err = cmp.Or(context.Cause(ctx), err)
	}
	if err == nil {
		err = o.print(stdout, results)
	}
	if err != nil {
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return plan.ExitNotRead
	}
	if o.exitZero {
		return exitOK
	}
	return preflight.ExitCode(results)
}

// print writes the results in groups.
func (o *checkOptions) print(stdout io.Writer, results []preflight.Result) error {
	if o.output == "json" {
		encoder := json.NewEncoder(stdout)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		return encoder.Encode(results)
	}
	group, counts := "", map[preflight.Status]int{}
	for _, r := range results {
		counts[r.Status]++
		if o.output == "short" && (r.Status == preflight.OK || r.Status == preflight.Note) {
			continue
		}
		if r.Group != group {
			group = r.Group
			fmt.Fprintln(stdout, oneLine(group))
		}
		fmt.Fprintf(stdout, "  %-8s %s\n", r.Status, oneLine(r.Text))
		if r.Hint != "" {
			fmt.Fprintf(stdout, "           -> %s\n", oneLine(r.Hint))
		}
		if r.Docs != "" && r.Status != preflight.Note {
			fmt.Fprintf(stdout, "           %s\n", r.Docs)
		}
	}
	_, err := fmt.Fprintf(stdout, "Faults: %d, warnings: %d, skipped: %d. Nothing was changed.\n", counts[preflight.Fault], counts[preflight.Warning], counts[preflight.Skipped])
	return err
}
