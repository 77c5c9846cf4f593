package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/diagnose"
	"imds-oidc-proxy/internal/flagenv"
)

// checkCommand is the one subcommand: proxy check.
const checkCommand = "check"

const (
	// checkTimeout bounds the whole walk, whose longest step, the exchange, takes
	// 21 s. A pod's exec session should not hang for longer than a person waits.
	checkTimeout = time.Minute

	defaultResource = "https://management.azure.com/"

	outputText = "text"
	outputJSON = "json"
)

// checkConfig is what `proxy check` is told, beside the proxy's own configuration.
type checkConfig struct {
	proxy config

	resource   azure.Resource
	clientID   azure.ClientID
	output     string
	askIMDS    bool
	noRedirect bool

	// path is where programs are looked for: PATH.
	path string
}

// check is the whole of `proxy check`. Its exit status is that of the first step
// that failed.
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
	write := newReportWriter(cfg.output, stdout)
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

// parseCheck reads the flags. The proxy's own mean the same here, so that a check
// can be given what the proxy was given.
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
	cfg.proxy.addFlags(flags.FlagSet)
	flags.Usage = func() { fmt.Fprintf(stdout, checkUsage, own.FlagUsages()) }
	if err := cfg.proxy.parse(flags, args, getenv); err != nil {
		return cfg, err
	}
	for _, name := range []string{"probe", "version"} {
		if flags.Changed(name) {
			return cfg, configErrorf("--%s is for proxy alone: leave it out, or leave check out", name)
		}
	}
	cfg.proxy.readPodEnvironment(getenv)
	cfg.path = getenv("PATH")
	if getenv(azure.EnvIMDSHost) != "" {
		cfg.noRedirect = true
	}
	return cfg, cfg.check()
}

func newCheckFlags(cfg *checkConfig) *pflag.FlagSet {
	flags := pflag.NewFlagSet("proxy check", pflag.ContinueOnError)
	flags.SortFlags = false
	cfg.resource, cfg.output = defaultResource, outputText
	flagenv.Var(flags, &cfg.resource, "resource", azure.ParseResource, "`resource` to ask a token for")
	flagenv.Var(flags, &cfg.clientID, "client-id", flagenv.Optional(azure.ParseClientID), "the `identity` to ask a token for; empty means "+azure.EnvClientID)
	flagenv.Var(flags, &cfg.output, "output", flagenv.OneOf(outputText, outputJSON), "text or json")
	flags.BoolVar(&cfg.askIMDS, "ask-imds", false, "also ask the real IMDS whether it answers, with a request that needs no identity")
	flags.BoolVar(&cfg.noRedirect, "no-redirect", false, "this pod is meant to have no redirect: its absence is no fault; set where "+azure.EnvIMDSHost+" is")
	return flags
}

const checkUsage = `proxy check walks the way from this pod's environment to a token, and says at each
step what it found and how to mend it. It takes the proxy's flags and variables
(proxy --help; give it those that the proxy was given) and these:

%s
It makes one real token request. It prints no token.

Exit status: 0 nothing failed, 1 it could not be carried out, 2 a flag is wrong;
else the first step that failed:

  10  environment       a variable is missing or wrong
  11  federated token   unreadable, expired, or for another audience
  12  issuer            its documents contradict the federated token
  13  authority         Entra cannot be reached, or does not know the tenant
  14  exchange          Entra refuses the token request
  15  imds              metadata requests of this pod do not reach the proxy
  16  rules             the redirect is not in place (where this user may look)
`

func (c *checkConfig) check() error {
	if err := c.proxy.checkHTTPProxy(); err != nil {
		return err
	}
	if err := c.proxy.checkPrefetch(); err != nil {
		return err
	}
	// The proxy answers no request for such a token: that it came would say nothing.
	if allowed := c.proxy.allowedClientIDs; c.clientID != "" && len(allowed) > 0 && !slices.Contains(allowed, c.clientID) {
		return configErrorf("--client-id %q: must be among --allowed-client-ids (PROXY_ALLOWED_CLIENT_IDS), or the proxy answers no request for it", c.clientID)
	}
	return nil
}

// diagnosis is the configuration as package diagnose takes it.
func (c *checkConfig) diagnosis() diagnose.Config {
	return diagnose.Config{
		Exchange:        c.proxy.exchangeConfig(),
		DefaultClientID: c.proxy.defaultClientID,
		Refused:         c.proxy.checkHandler(),
		Invalid:         c.proxy.invalid,
		ClientID:        c.clientID,
		Resource:        c.resource,
		IMDS:            c.metadata(),
		Rules:           c.rules(),
	}
}
