package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/output"
	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/report"
	"imds-oidc-proxy/internal/verify"
)

const reportUsage = `Usage: imds-migrate report [flags]

imds-migrate report asks all sidecars of a cluster, or with --namespace of a namespace, which clients
still ask them, and says for each workload whether the sidecar can go. It changes nothing.

A sidecar is asked at its admin port through the API server, which needs the right to get pods/proxy, or
by the command proxy clients, which needs the right to create pods/exec. The log of a Job's sidecar that
has ended, and the errors in the logs of the others, need the right to get pods/log. docs/report.md
explains the codes.
%s
Exit codes:
   0  all sidecars can go, or there is none
   1  could not look: no cluster, pods cannot be read, no sidecar or no Prometheus answers; or all
      sidecars can go, but a kind could not be read
   2  invalid flag or command
   3  a sidecar is needed, or it is not known yet
`

// The defaults of the flags.
const (
	reportTimeout     = 20 * time.Second
	prometheusTimeout = time.Minute
)

// reportOptions is the command line of report.
type reportOptions struct {
	cluster    clusterFlags
	config     report.Config
	prometheus string
	labels     []report.Label
	output     string
	all        bool
	exitZero   bool
}

func parseReport(args []string, stdout io.Writer) (*reportOptions, error) {
	o := &reportOptions{output: "table", config: report.Config{Timeout: reportTimeout}}
	set := flagenv.New("imds-migrate report", nil)
	set.Group("Sidecars")
	set.BoolVarP(&o.all, "all-namespaces", "A", false, "all namespaces, which is the default")
	flagenv.Var(set.FlagSet, &o.config.Period, "period", parsePeriod, "the longest `period` of the applications' jobs: a sidecar can go if nobody has asked for so long; default: 35d, or that of the namespace's CronJob that runs least often")
	set.StringVar(&o.prometheus, "prometheus", "", "`URL` of a Prometheus that scrapes the sidecars: it stores data longer than the sidecars")
	flagenv.List(set.FlagSet, &o.labels, "prometheus-label", parseLabel, "`NAME=VALUE` of the cluster's series, if Prometheus has data of several clusters")
	set.DurationVar(&o.config.Timeout, "timeout", o.config.Timeout, "the longest time to ask one pod")
	set.Group("Output")
	flagenv.VarP(set.FlagSet, &o.output, "output", "o", flagenv.OneOf(output.ReportFormats...), "`format`: "+strings.Join(output.ReportFormats, ", "))
	set.BoolVar(&o.exitZero, "exit-zero", false, "exit with 0 in place of 3")
	o.cluster.addFlags(set)
	set.Usage = func() { fmt.Fprintf(stdout, reportUsage, set.Usages()) }
	if err := set.Parse(args, nil); err != nil {
		return nil, err
	}
	if o.config.Timeout <= 0 {
		return nil, flagenv.Errorf("timeout", "%q: must be more than zero", o.config.Timeout)
	}
	if o.config.Namespace = o.cluster.namespace(); o.all {
		o.config.Namespace = ""
	}
	if o.prometheus == "" {
		if len(o.labels) > 0 {
			return nil, flagenv.Errorf("prometheus-label", "needs --prometheus")
		}
		return o, nil
	}
	address, err := url.Parse(o.prometheus)
	if err != nil || address.Host == "" || address.Scheme != "http" && address.Scheme != "https" { // without the value, which may have a password
		return nil, flagenv.Errorf("prometheus", "must be a URL, such as http://127.0.0.1:9090")
	}
	o.config.Prometheus = &report.Prometheus{URL: address, Labels: o.labels, Client: &http.Client{Timeout: prometheusTimeout}}
	return o, nil
}

// parsePeriod reads a number of days or a duration of Go.
func parsePeriod(text string) (time.Duration, error) {
	const longest = 10 * 365
	period, err := time.ParseDuration(text)
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		n, failed := strconv.Atoi(days)
		period, err = time.Duration(n)*24*time.Hour, failed
		if n > longest {
			return 0, fmt.Errorf("must be at most %d days", longest)
		}
	}
	if err != nil || period <= 0 {
		return 0, errors.New("must be days or hours, such as 35d or 12h")
	}
	return period, nil
}

var labelName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)

func parseLabel(text string) (report.Label, error) {
	name, value, _ := strings.Cut(text, "=")
	if !labelName.MatchString(name) || value == "" {
		return report.Label{}, errors.New("must be a label and its value, such as cluster=prod")
	}
	return report.Label{Name: name, Value: value}, nil
}

// runReport is the command report.
func runReport(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseReport(args, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return exitUsage
	}
	var found *report.Report
	cluster, err := o.cluster.connect()
	if err == nil {
		shown := newProgress(stderr)
		o.config.Now, o.config.Progress = time.Now(), shown.show
		found, err = report.Run(ctx, cluster, verify.RemoteExecutor{Config: cluster.config}, o.config)
		shown.end()
		if err != nil {
			err = cmp.Or(context.Cause(ctx), err) // such as interrupt
		}
	}
	if found != nil { // also if it was interrupted
		found.Cluster = cluster.name
		err = cmp.Or(err, output.WriteReport(stdout, found, o.output))
	}
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return plan.ExitNotRead
	case o.exitZero && report.ExitCode(found) == plan.ExitWork:
		return exitOK
	}
	return report.ExitCode(found)
}
