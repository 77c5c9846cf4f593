// Package diagnose checks each step from a pod's environment to an access token, and
// reports what it finds and how to fix it.
//
//	report := diagnose.Run(ctx, diagnose.Config{Exchange: …, ClientID: …, Resource: …}, nil)
//	step, failed := report.FirstFailed()
//
// It changes nothing. It obtains a token in the same way as the proxy, with package exchange
// and one real token request to Entra. It does not read the rules of the redirect, because that
// requires privileges that a sidecar does not have.
//
// # Security considerations
//
// Users paste reports into tickets. A report has no token, no client assertion, no password
// of a URL and no response body. Text from claims, certificates and headers is untrusted,
// so reports have only a bounded part of it, in printable ASCII.
//
// The package reads documents from the host in the federated token's issuer, which is an
// unverified claim. To prevent SSRF it uses https only, no link-local addresses, such as
// that of the metadata service, and no redirects.
package diagnose

import (
	"context"
	"slices"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// Status is the result of a step or of a finding.
type Status string

// The statuses, in order of severity.
const (
	// Skipped: it could not be checked. The text gives the reason.
	Skipped Status = "skipped"
	// OK: there is no problem.
	OK Status = "ok"
	// Note: information that may help, but no failure.
	Note Status = "note"
	// Fail: until this is fixed, the application gets no token or a wrong one.
	Fail Status = "fail"
)

// StepName is the name of a step in reports.
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

// Finding is the result of one check.
type Finding struct {
	Status Status `json:"status"`
	// Item is the checked item: a variable, a claim, an address.
	Item string `json:"item"`
	// Text says what the check found.
	Text string `json:"text"`
	// Remedy is the command or the setting that fixes the problem. Empty: there is none.
	Remedy string `json:"remedy,omitempty"`

	// AADSTS is Entra's error code. Zero: there is none.
	AADSTS int `json:"aadsts,omitempty"`
	// TraceID and CorrelationID identify the request in Entra's logs.
	TraceID       string `json:"trace_id,omitempty"`
	CorrelationID string `json:"correlation_id,omitempty"`
}

// Step has the findings of one step.
type Step struct {
	Name StepName `json:"step"`
	// Status is the most severe status of the findings.
	Status   Status    `json:"status"`
	Findings []Finding `json:"findings"`
}

// Report has the findings of all steps.
type Report struct {
	Steps []Step `json:"steps"`
}

// FirstFailed returns the first step that failed. If none failed, ok is false.
func (r Report) FirstFailed() (name StepName, ok bool) {
	for _, s := range r.Steps {
		if s.Status == Fail {
			return s.Name, true
		}
	}
	return "", false
}

// Config configures a check.
type Config struct {
	// Exchange is the proxy's configuration of package exchange. A missing field is a
	// finding, not an error.
	Exchange exchange.Config

	// DefaultClientID is AZURE_CLIENT_ID. If it is empty, there is a finding.
	DefaultClientID azure.ClientID

	// Refused is the error with which the proxy would refuse to start, apart from errors
	// of Exchange. Nil: there is none.
	Refused error

	// Invalid has the error of each environment variable whose value is invalid, by its
	// name. The field for this value in Exchange is empty. Nil: all values are valid.
	Invalid map[string]error

	// ClientID is the identity for the token request. Empty: DefaultClientID. If both are
	// empty, the exchange is skipped.
	ClientID azure.ClientID

	// ClientIDs are the client IDs in the proxy's configuration, which requests may name by
	// object ID or resource ID, too. Identities is --identity.
	ClientIDs  []azure.ClientID
	Identities []azure.Identity

	// InstanceFile is --instance-metadata. Empty: there is none.
	InstanceFile string

	// Resource is the resource for the token request. Required.
	Resource azure.Resource

	// IMDS sends metadata requests, to find out which server answers them.
	IMDS Metadata

	// Now is the clock for the federated token's expiry. Nil: time.Now.
	Now func() time.Time
}

// Run runs all steps. After a failed step it skips the steps that depend on it. Run calls
// each, unless it is nil, with every step as soon as the step is done. If ctx ends, the
// requests of the remaining steps fail.
func Run(ctx context.Context, cfg Config, each func(Step)) Report {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &run{cfg: cfg}
	var report Report
	for _, s := range []struct {
		name  StepName
		check func(context.Context) []Finding
	}{
		{Environment, r.environment},
		{FederatedToken, r.federatedToken},
		{Issuer, r.issuer},
		{Authority, r.authority},
		{Exchange, r.exchange},
		{IMDS, r.metadata},
	} {
		step := newStep(s.name, s.check(ctx))
		report.Steps = append(report.Steps, step)
		if each != nil {
			each(step)
		}
	}
	return report
}

// run has the results of earlier steps, for later steps.
type run struct {
	cfg Config

	// exchanger is set by environment. Nil: the configuration is invalid.
	exchanger *exchange.Exchanger

	// token is set by federatedToken. Nil: it cannot be read.
	token *exchange.FederatedToken

	// reached is set by authority if Entra has answered and knows the tenant.
	reached bool
}

func newStep(name StepName, findings []Finding) Step {
	step := Step{Name: name, Status: Skipped, Findings: findings}
	for i := range findings {
		f := &findings[i]
		f.Item, f.Text, f.Remedy = printable(f.Item), printable(f.Text), printable(f.Remedy)
		if severity(f.Status) > severity(step.Status) {
			step.Status = f.Status
		}
	}
	return step
}

func severity(s Status) int { return slices.Index([]Status{Skipped, OK, Note, Fail}, s) }
