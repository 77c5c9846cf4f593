package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/output"
	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/survey"
)

// runPlan is the command plan. It writes the plan to stdout, and messages and progress to stderr, and
// returns the exit code.
func runPlan(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parsePlan(args, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		return exitUsage
	}
	p, err := o.makePlan(ctx, stdin, stderr)
	if err == nil && o.write != "" {
		err = output.WriteDir(o.write, p)
	}
	if err == nil {
		err = output.Write(stdout, p, o.output)
	}
	if err != nil {
		fmt.Fprintf(stderr, "imds-migrate: %v\n", err)
		if _, usage := errors.AsType[*output.UsageError](err); usage {
			return exitUsage
		}
		return plan.ExitNotRead
	}
	if code := p.ExitCode(); code == plan.ExitNotRead || !o.exitZero {
		return code
	}
	return exitOK
}

// makePlan reads the cluster or the files, and Azure.
func (o *planOptions) makePlan(ctx context.Context, stdin io.Reader, stderr io.Writer) (*plan.Plan, error) {
	s, err := o.read(ctx, stdin, stderr)
	if err != nil {
		return nil, err
	}
	p := plan.New(s, o.plan)
	if o.azure {
		progress := newProgress(stderr)
		o.countInAzure(ctx, p, progress)
		progress.end()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		p = plan.New(s, o.plan)
	}
	if p.Cluster.Issuer == "" && output.CreatesCredentials(o.output.Format) {
		return nil, fmt.Errorf("the cluster's issuer is not known (%s): set --issuer", s.NoIssuer)
	}
	return p, nil
}

// read reads the cluster or the files.
func (o *planOptions) read(ctx context.Context, stdin io.Reader, stderr io.Writer) (*survey.Survey, error) {
	progress := newProgress(stderr)
	defer progress.end()
	s := survey.New(o.survey)
	var err error
	if len(o.files) > 0 {
		err = o.waitFor(ctx, progress, func() error { return o.readFiles(s, stdin) })
	} else {
		err = o.readCluster(ctx, s, progress)
	}
	if err != nil {
		return nil, cmp.Or(context.Cause(ctx), err)
	}
	s.Finish()
	if !s.HasWorkloads() {
		return nil, fmt.Errorf("%s: no pod and no workload in it (%d objects of other kinds): export them with kubectl get pods,deployments,… --all-namespaces --output=yaml", strings.Join(o.files, ", "), s.Ignored)
	}
	if !s.Live && !s.HasNamespace(o.survey.Namespace) {
		return nil, flagenv.Errorf("namespace", "%q: no object in %s is in it", o.survey.Namespace, strings.Join(o.files, ", "))
	}
	return s, nil
}

// waitFor runs read, which ends with the program if the context is cancelled: a read of standard input cannot
// be interrupted.
func (o *planOptions) waitFor(ctx context.Context, progress *progress, read func() error) error {
	progress.show(strings.Join(o.files, ", "))
	done := make(chan error, 1)
	go func() { done <- read() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readFiles reads the objects in files.
func (o *planOptions) readFiles(s *survey.Survey, stdin io.Reader) error {
	for _, name := range o.files {
		paths, err := expand(name)
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := readFile(s, path, stdin); err != nil {
				return err
			}
		}
	}
	return nil
}

func readFile(s *survey.Survey, path string, stdin io.Reader) error {
	if path == stdinName {
		return s.ReadFile("stdin", stdin)
	}
	f := &file{path: path}
	in, err := f.open()
	if err != nil {
		return err
	}
	defer in.Close()
	return s.ReadFile(path, in)
}

// readCluster reads the cluster of the kubeconfig.
func (o *planOptions) readCluster(ctx context.Context, s *survey.Survey, progress *progress) error {
	cluster, err := o.cluster.connect()
	if err != nil {
		return fmt.Errorf("%w, or --filename to read exported objects", err)
	}
	o.plan.ClusterName = cmp.Or(o.plan.ClusterName, cluster.name)
	if err := s.ReadCluster(ctx, cluster, progress.show); err != nil {
		return err
	}
	return survey.NamespaceExists(ctx, cluster, o.survey.Namespace)
}
