// Package diagnose checks each step from a pod's environment to an access token, and says
// what it found there and how to fix what is wrong.
//
//	report := diagnose.Run(ctx, diagnose.Config{Exchange: …, ClientID: …, Resource: …}, nil)
//	step, failed := report.FirstFailed()
//
// It changes nothing. It makes its requests as the proxy does: the exchange is package
// exchange's own, with one real token request to Entra. It reads no packet filter rules,
// which takes privileges that a sidecar does not have.
//
// # Security considerations
//
// Reports are pasted into tickets: a report holds no token, no assertion, no password of a
// URL and no body that a server sent. What it quotes of claims, certificates and
// headers, which others may have chosen, is bounded and in printable ASCII.
//
// The federated token's issuer, an unverified claim, chooses a host to ask: over
// https only, never on a link-local address, such as the metadata service's, and
// without following redirects.
package diagnose

import (
	"context"
	"slices"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// Status is the result of a step, or of one finding.
type Status string

// The statuses, from harmless to grave.
const (
	// Skipped: it could not be checked, for the reason that the text gives.
	Skipped Status = "skipped"
	// OK: as it should be.
	OK Status = "ok"
	// Note: worth knowing, and no fault by itself.
	Note Status = "note"
	// Fail: the application gets no token, or not the right one, until this is fixed.
	Fail Status = "fail"
)

// StepName names a step in reports.
type StepName string

// The steps, in order.
const (
	Environment    StepName = "environment"
	FederatedToken StepName = "federated token"
	Issuer         StepName = "issuer"
	Authority      StepName = "authority"
	Exchange       StepName = "exchange"
	IMDS           StepName = "imds"
)

// Finding is one thing that was checked.
type Finding struct {
	Status Status `json:"status"`
	// Item is what was checked: a variable, a claim, an address.
	Item string `json:"item"`
	// Text is what was found.
	Text string `json:"text"`
	// Remedy is the command or the setting that fixes it. Empty: none is needed.
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

// Report holds what all steps found.
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

// Config says what to check.
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

	// Now is the clock for the federated token's expiry. Nil: time.Now.
	Now func() time.Time
}

// Run runs all steps, also those after a failed one as far as they do not depend on it.
// It calls each, unless it is nil, with every step as soon as the step is done. When ctx
// ends, requests end, and the remaining steps say so.
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
	} {
		step := newStep(s.name, s.look(ctx))
		report.Steps = append(report.Steps, step)
		if each != nil {
			each(step)
		}
	}
	return report
}

// walk is what later steps use of earlier ones.
type walk struct {
	cfg Config

	// exchanger is made by environment. Nil: the configuration does not allow it.
	exchanger *exchange.Exchanger

	// token is read by federatedToken. Nil: it cannot be read.
	token *exchange.FederatedToken

	// reached is set by authority: Entra answered, and knows the tenant.
	reached bool
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

func gravity(s Status) int { return slices.Index([]Status{Skipped, OK, Note, Fail}, s) }
