package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/diagnose"
	"imds-oidc-proxy/internal/flagenv"
)

// checkCommand is the name of the subcommand that tests each step to a token.
const checkCommand = "check"

const (
	// checkTimeout bounds the whole check. Its longest step, the exchange, takes up to 21 s.
	checkTimeout = time.Minute

	defaultResource = "https://management.azure.com/"

	outputText = "text"
	outputJSON = "json"
)

// checkConfig is the configuration of `proxy check`: that of the proxy, and its own flags.
type checkConfig struct {
	proxy config

	resource   azure.Resource
	clientID   azure.ClientID
	output     string
	askIMDS    bool
	noRedirect bool
}

// check runs `proxy check` and returns the exit code of the first step that failed.
func check(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	cfg, err := parseCheck(args, getenv, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitOK
	case err != nil:
		return fail(stderr, exitUsage, err)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	write := &reportWriter{json: cfg.output == outputJSON, out: stdout}
	write.begin()
	report := diagnose.Run(ctx, cfg.diagnosis(), write.step)
	code := checkExitCode(report)
	if errors.Is(ctx.Err(), context.Canceled) {
		return fail(stderr, exitFailure, errors.New("interrupted"))
	}
	if err := write.end(report, code); err != nil {
		return fail(stderr, exitFailure, err)
	}
	return code
}

// parseCheck reads the flags. It accepts the proxy's flags with the same meaning, so that
// the check can run with the proxy's command line.
func parseCheck(args []string, getenv func(string) string, stdout io.Writer) (checkConfig, error) {
	var cfg checkConfig
	own := newCheckFlags(&cfg)
	flags := flagenv.New("proxy check", func(flag string) string {
		if own.Lookup(flag) != nil {
			return ""
		}
		return variable(flag)
	})
	flags.AddFlagSet(own)
	cfg.proxy.addFlags(flags)
	flags.Usage = func() { fmt.Fprintf(stdout, checkUsage, own.FlagUsages(), exitHelp(checkExits)) }
	if err := cfg.proxy.parse(flags, args, getenv); err != nil {
		return cfg, err
	}
	for _, name := range []string{"probe", "version"} {
		if flags.Changed(name) {
			return cfg, configErrorf("--%s is not a flag of proxy check: remove it, or run proxy --%s", name, name)
		}
	}
	cfg.proxy.readPodEnvironment(getenv)
	if getenv(azure.EnvIMDSHost) != "" {
		cfg.noRedirect = true
	}
	return cfg, cfg.check()
}

func newCheckFlags(cfg *checkConfig) *pflag.FlagSet {
	flags := pflag.NewFlagSet("proxy check", pflag.ContinueOnError)
	flags.SortFlags = false
	cfg.resource, cfg.output = defaultResource, outputText
	flagenv.Var(flags, &cfg.resource, "resource", azure.ParseResource, "`resource` to request a token for")
	flagenv.Var(flags, &cfg.clientID, "client-id", flagenv.Optional(azure.ParseClientID), "client `ID` to request a token for; default: "+azure.EnvClientID)
	flagenv.Var(flags, &cfg.output, "output", flagenv.OneOf(outputText, outputJSON), "text or json")
	flags.BoolVar(&cfg.askIMDS, "ask-imds", false, "also send the real IMDS a request that needs no identity, and report whether it answers")
	flags.BoolVar(&cfg.noRedirect, "no-redirect", false, "this pod is not meant to have a redirect, so its absence is not a failure; default: true if "+azure.EnvIMDSHost+" is set")
	return flags
}

const checkUsage = `Usage: proxy check [flags]

Test each step from this pod's environment to a token, and print what was found and how
to fix it. The check requests one real token and never prints it.

Run it with the flags and environment variables of the proxy (proxy --help). It also has
these flags:

%s
Exit codes:
%s`

func (c *checkConfig) check() error {
	if err := c.proxy.checkHTTPProxy(); err != nil {
		return err
	}
	if err := c.proxy.checkPrefetch(); err != nil {
		return err
	}
	// The proxy refuses requests for this client ID, so a token for it would prove nothing.
	if allowed := c.proxy.allowedClientIDs; c.clientID != "" && len(allowed) > 0 && !slices.Contains(allowed, c.clientID) {
		return configErrorf("--client-id %q: must be one of --allowed-client-ids (PROXY_ALLOWED_CLIENT_IDS); the proxy refuses requests for any other client ID", c.clientID)
	}
	return nil
}

// diagnosis returns the configuration of package diagnose.
func (c *checkConfig) diagnosis() diagnose.Config {
	return diagnose.Config{
		Exchange:        c.proxy.exchangeConfig(),
		DefaultClientID: c.proxy.defaultClientID,
		Refused:         c.proxy.checkHandler(),
		Invalid:         c.proxy.invalid,
		ClientID:        c.clientID,
		ClientIDs:       c.proxy.configuredClientIDs(),
		Identities:      c.proxy.identityList,
		InstanceFile:    c.proxy.instanceFile,
		Resource:        c.resource,
		IMDS:            c.metadata(),
	}
}

// checkExits are the exit codes of `proxy check`, one for each step that can fail.
var checkExits = []exit{
	{exitOK, "", "nothing failed"},
	{exitFailure, "", "the check could not be carried out"},
	{exitUsage, "", "a flag is invalid"},
	{10, string(diagnose.Environment), "an environment variable is missing or invalid"},
	{11, string(diagnose.FederatedToken), "unreadable, expired, or for another audience"},
	{12, string(diagnose.Issuer), "its documents contradict the federated token"},
	{13, string(diagnose.Authority), "Entra cannot be reached, or does not know the tenant"},
	{14, string(diagnose.Exchange), "Entra refuses the token request"},
	{15, string(diagnose.IMDS), "metadata requests of this pod do not reach the proxy"},
	{16, "rules", "reserved: no longer used; proxy-init --check checks the rules"},
}

func checkExitCode(report diagnose.Report) int {
	step, failed := report.FirstFailed()
	if !failed {
		return exitOK
	}
	for _, e := range checkExits {
		if e.name == string(step) {
			return e.code
		}
	}
	return exitFailure
}

// reportWriter writes a report, either as text, one step at a time, or as JSON when the
// report is complete.
type reportWriter struct {
	json bool
	out  io.Writer
	err  error
}

func (w *reportWriter) begin() {
	if !w.json {
		_, w.err = fmt.Fprintf(w.out, "proxy %s, check as UID %d, GID %d\n\n", version, os.Getuid(), os.Getgid())
	}
}

func (w *reportWriter) step(s diagnose.Step) {
	if !w.json && w.err == nil {
		w.err = diagnose.WriteText(w.out, s)
	}
}

func (w *reportWriter) end(report diagnose.Report, code int) error {
	failed, _ := report.FirstFailed()
	if w.json {
		encoder := json.NewEncoder(w.out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(struct {
			Version     string            `json:"version"`
			ExitStatus  int               `json:"exit_status"`
			FirstFailed diagnose.StepName `json:"first_failed"`
			diagnose.Report
		}{version, code, failed, report})
	}
	if w.err != nil {
		return w.err
	}
	var err error
	if code == exitOK {
		_, err = fmt.Fprintln(w.out, "\nnothing failed (exit code 0)")
	} else {
		_, err = fmt.Fprintf(w.out, "\nfix first: %s (exit code %d)\n", failed, code)
	}
	return err
}
