package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"imds-oidc-proxy/internal/diagnose"
)

// checkExitCode is the one place where a step becomes an exit code.
func checkExitCode(report diagnose.Report) int {
	step, failed := report.FirstFailed()
	if !failed {
		return exitOK
	}
	switch step {
	case diagnose.Environment:
		return exitEnvironment
	case diagnose.FederatedToken:
		return exitFederatedToken
	case diagnose.Issuer:
		return exitIssuer
	case diagnose.Authority:
		return exitAuthority
	case diagnose.Exchange:
		return exitExchange
	case diagnose.IMDS:
		return exitIMDS
	case diagnose.RedirectRules:
		return exitRules
	}
	return exitFailure
}

// reportWriter writes a report as text, step by step, or as JSON at its end.
type reportWriter struct {
	json bool
	out  io.Writer
	err  error
}

func newReportWriter(output string, out io.Writer) *reportWriter {
	return &reportWriter{json: output == outputJSON, out: out}
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
		_, err = fmt.Fprintln(w.out, "\nnothing failed (exit status 0)")
	} else {
		_, err = fmt.Fprintf(w.out, "\nfirst to mend: %s (exit status %d)\n", failed, code)
	}
	return err
}
