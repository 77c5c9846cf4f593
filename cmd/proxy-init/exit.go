package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/netrules"
)

// The exit codes without a kind of failure.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// exits is the table of exit codes. Scripts depend on them, so they must not change.
var exits = [...]struct {
	code int
	kind netrules.Kind // zero: none
	help string
}{
	{exitOK, 0, "success (--check: all rules are in place and first)"},
	{exitFailure, 0, "another failure"},
	{exitUsage, 0, "invalid flag or environment variable"},
	{3, netrules.MissingCapability, "a capability is missing: NET_ADMIN, or for legacy also NET_RAW (--check: also\n" +
		"if the kernel has legacy tables here that cannot be read without NET_RAW)"},
	{4, netrules.NoBinary, "no iptables binary for the backend"},
	{5, netrules.LockHeld, "another process holds the xtables lock, or its file cannot be opened"},
	{6, netrules.MissingModule, "the kernel lacks a module, such as xt_owner or nf_nat"},
	{7, netrules.WrongBackend, "the backend cannot read rules in its tables"},
	{8, netrules.RulesDiffer, "the rules are not the planned ones (--check: missing, changed or not first)"},
	{9, netrules.NotRedirected, "the rules are in place, but a connection was not redirected to the proxy's port"},
	{10, netrules.HostNetwork, "this is a node's own network namespace"},
	{11, netrules.TimedOut, "iptables did not exit in time"},
	{12, netrules.PortTaken, "a process of another user than the proxy's holds the proxy's port"},
	{13, netrules.NoRedirect, "--validate: there is no redirect: the CNI plugin did not run on this node, or not\n" +
		"for this pod"},
	{14, netrules.NoGuard, "--validate: another user than the proxy's can answer at the proxy's port"},
}

func exitHelp() string {
	var b strings.Builder
	b.WriteString("Exit codes:\n")
	for _, e := range exits {
		fmt.Fprintf(&b, "  %2d  %s\n", e.code, strings.ReplaceAll(e.help, "\n", "\n      "))
	}
	return b.String()
}

func exitCode(k netrules.Kind) int {
	for _, e := range exits {
		if k != 0 && e.kind == k {
			return e.code
		}
	}
	return exitFailure
}

// report writes the cause and the remedy to the log and, in one line, to the termination log,
// and returns the exit code.
func report(o options, log *zap.Logger, err error) int {
	code, remedy := exitFailure, ""
	if failure, ok := errors.AsType[*netrules.Error](err); ok {
		code, remedy = exitCode(failure.Kind), failure.Remedy
	}
	log.Error(o.failureMessage(), zap.Error(err), zap.String("remedy", remedy), zap.Int("exit_code", code))
	writeTermination(o.terminationLog, terminationMessage(err, remedy))
	return code
}

func terminationMessage(err error, remedy string) string {
	cause := strings.ReplaceAll(err.Error(), "\n", " ")
	if remedy == "" {
		return cause
	}
	return fmt.Sprintf("%s. Remedy: %s", cause, remedy)
}

// maxTermination is the maximum size of a termination message, in bytes. The kubelet discards
// the rest.
const maxTermination = 4096

// writeTermination writes the message that `kubectl describe pod` shows. It does not create the
// file: if the kubelet has not created it, nothing reads it.
func writeTermination(path, message string) {
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return
	}
	defer f.Close()
	// An error is ignored, since the log has the same message.
	_, _ = f.WriteString("proxy-init: " + message[:min(len(message), maxTermination-len("proxy-init: "))])
}
