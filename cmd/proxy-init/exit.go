package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/netrules"
)

// The exit codes that no kind of failure has.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// exits is the table of exit codes. They are an interface: never renumbered.
var exits = [...]struct {
	code int
	kind netrules.Kind // zero: of no kind
	help string
}{
	{exitOK, 0, "done (--check: the rules are all there, and first)"},
	{exitFailure, 0, "any other failure"},
	{exitUsage, 0, "a wrong flag or variable"},
	{3, netrules.MissingCapability, "a capability is missing: NET_ADMIN, and for legacy NET_RAW too (--check: also\n" +
		"where the kernel has legacy tables here, and they cannot be seen without it)"},
	{4, netrules.NoBinary, "no iptables binary for the backend"},
	{5, netrules.LockHeld, "the xtables lock is held, or its file cannot be opened"},
	{6, netrules.MissingModule, "the kernel lacks a module, such as xt_owner or nf_nat"},
	{7, netrules.WrongBackend, "the backend's tables cannot be used"},
	{8, netrules.RulesDiffer, "the rules read back are not the planned ones (--check: not all there, or not first)"},
	{9, netrules.NotRedirected, "the rules are there, and a connection did not arrive at the proxy's port"},
	{10, netrules.HostNetwork, "this is a node's own network namespace"},
	{11, netrules.TimedOut, "iptables did not end in time"},
	{12, netrules.PortTaken, "a process of another user than the proxy's holds the proxy's port"},
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

// report writes cause and remedy in one line, to the log and for the kubelet, and
// returns the exit code.
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

// maxTermination is how many bytes of a termination message the kubelet keeps.
const maxTermination = 4096

// writeTermination writes the message where `kubectl describe pod` shows it. The
// kubelet creates the file: where there is none, nobody reads it.
func writeTermination(path, message string) {
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return
	}
	defer f.Close()
	// Best effort: the log has the same line.
	_, _ = f.WriteString("proxy-init: " + message[:min(len(message), maxTermination-len("proxy-init: "))])
}
