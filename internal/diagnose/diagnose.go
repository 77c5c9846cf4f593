// Package diagnose walks the way from a pod's environment to an access token, and
// says at each step what it found and how to mend what is wrong.
//
//	report := diagnose.Run(ctx, diagnose.Config{Exchange: …, ClientID: …, Resource: …}, nil)
//	step, failed := report.FirstFailed()
//
// It changes nothing. What it asks for, it asks as the proxy does: the exchange is
// package exchange's own, with one real token request to Entra. Packet filter rules
// it is given to read where the process may look, which a sidecar may not; it installs
// and changes none.
//
// # Security considerations
//
// A report is pasted into tickets: it holds no token, no assertion, no password of a
// URL and no body that a server sent. What it quotes of claims, certificates and
// headers, which others may have chosen, is bounded and in printable ASCII.
//
// The federated token's issuer, an unverified claim, chooses a host to ask: over
// https only, never on a link-local address, such as the metadata service's, and
// without following redirects.
package diagnose

import (
	"context"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// Status says how a step, or one finding of it, came out.
type Status string

// The statuses, from harmless to grave.
const (
	// Skipped: it could not be looked at, for the reason that the text gives.
	Skipped Status = "skipped"
	// OK: as it should be.
	OK Status = "ok"
	// Note: worth knowing, and no fault by itself.
	Note Status = "note"
	// Fail: no token comes, or not the right one, until this is mended.
	Fail Status = "fail"
)

// StepName names a step in reports.
type StepName string

// The steps, in the order of the walk.
const (
	Environment    StepName = "environment"
	FederatedToken StepName = "federated token"
	Issuer         StepName = "issuer"
	Authority      StepName = "authority"
	Exchange       StepName = "exchange"
	IMDS           StepName = "imds"
	RedirectRules  StepName = "rules"
)

// Finding is one thing that was looked at.
type Finding struct {
	Status Status `json:"status"`
	// Item is what was looked at: a variable, a claim, an address.
	Item string `json:"item"`
	// Text is what was found.
	Text string `json:"text"`
	// Remedy is the command or the setting that mends it. Empty: none is needed.
	Remedy string `json:"remedy,omitempty"`

	// AADSTS is Entra's code. Zero: Entra gave none.
	AADSTS int `json:"aadsts,omitempty"`
	// TraceID and CorrelationID find the attempt in Entra's logs.
	TraceID       string `json:"trace_id,omitempty"`
	CorrelationID string `json:"correlation_id,omitempty"`
}

// Step is what one step found.
type Step struct {
	Name StepName `json:"step"`
	// Status is the gravest of the findings'.
	Status   Status    `json:"status"`
	Findings []Finding `json:"findings"`
}

// Report is the whole walk.
type Report struct {
	Steps []Step `json:"steps"`
}

// FirstFailed returns the first step that failed; ok is false when none did.
func (r Report) FirstFailed() (name StepName, ok bool) {
	for _, s := range r.Steps {
		if s.Status == Fail {
			return s.Name, true
		}
	}
	return "", false
}

// Config says what to walk.
type Config struct {
	// Exchange is how the proxy exchanges tokens. Fields that are missing are findings,
	// not errors.
	Exchange exchange.Config

	// DefaultClientID is AZURE_CLIENT_ID. One that is empty or wrong is a finding.
	DefaultClientID azure.ClientID

	// Refused is why the proxy would refuse to start, apart from Exchange. Nil: it
	// would not.
	Refused error

	// Invalid says what is wrong with environment variables that are set, by name; their
	// fields in Exchange are empty. Nil: nothing is.
	Invalid map[string]error

	// ClientID is the identity to ask a token for. Empty: the default one; where there is
	// none either, the exchange is skipped.
	ClientID azure.ClientID

	// Resource is what to ask a token for. Required.
	Resource azure.Resource

	// IMDS finds out who answers metadata requests in this pod.
	IMDS Metadata

	// Rules looks at the redirect's rules.
	Rules Rules

	// Now is the clock for the federated token's expiry. Nil: time.Now.
	Now func() time.Time
}

// Run walks all steps, also those after one that failed as far as they do not need
// it, and calls each with every step as soon as it is over; nil calls nothing. It
// ends early only in that what waits ends with ctx.
func Run(ctx context.Context, cfg Config, each func(Step)) Report {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	w := &walk{cfg: cfg}
	var report Report
	for _, s := range []struct {
		name StepName
		look func(context.Context) []Finding
	}{
		{Environment, w.environment},
		{FederatedToken, w.federatedToken},
		{Issuer, w.issuer},
		{Authority, w.authority},
		{Exchange, w.exchange},
		{IMDS, w.metadata},
		{RedirectRules, w.rules},
	} {
		step := newStep(s.name, s.look(ctx))
		report.Steps = append(report.Steps, step)
		if each != nil {
			each(step)
		}
	}
	return report
}

// walk is what later steps know from earlier ones.
type walk struct {
	cfg Config

	// exchanger is made by environment. Nil: the configuration does not allow it.
	exchanger *exchange.Exchanger

	// token is read by federatedToken. Nil: it cannot be read.
	token *exchange.FederatedToken

	// reached is set by authority: Entra answered, and knows the tenant.
	reached bool

	// proxyRuns is set by metadata: a proxy such as this one listens on its port.
	proxyRuns bool
}

func newStep(name StepName, findings []Finding) Step {
	step := Step{Name: name, Status: Skipped, Findings: findings}
	for i := range findings {
		f := &findings[i]
		f.Item, f.Text, f.Remedy = printable(f.Item), printable(f.Text), printable(f.Remedy)
		if gravity(f.Status) > gravity(step.Status) {
			step.Status = f.Status
		}
	}
	return step
}

func gravity(s Status) int {
	switch s {
	case OK:
		return 1
	case Note:
		return 2
	case Fail:
		return 3
	}
	return 0
}
