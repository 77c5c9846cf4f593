package main

import (
	"errors"
	"fmt"
	"strings"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/netrules"
	"imds-oidc-proxy/internal/termlog"
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
	{exitOK, 0, "success (--check: all rules are in place)"},
	{exitFailure, 0, "another failure"},
	{exitUsage, 0, "invalid flag or environment variable"},
	{3, netrules.MissingCapability, "rules may not be changed: the capability NET_ADMIN is missing, or for legacy also\n" +
		"NET_RAW; or the table belongs to another process or user namespace"},
	{4, netrules.NoBinary, "no iptables binary for the backend, or to remove an earlier redirect"},
	{5, netrules.LockHeld, "another process holds the xtables lock, or its file cannot be opened"},
	{6, netrules.MissingModule, "the kernel lacks a module, such as nft_redir, xt_owner or nf_nat, or is too old"},
	{7, netrules.WrongBackend, "the backend cannot read rules in its tables"},
	{8, netrules.RulesDiffer, "the rules are not the planned ones (--check: missing, changed, not first,\n" +
		"or beside rules of another backend)"},
	{9, netrules.NotRedirected, "the rules are in place, but a connection was not redirected to the proxy's port"},
	{10, netrules.HostNetwork, "this is a node's own network namespace"},
	{11, netrules.TimedOut, "iptables did not exit in time"},
	{12, netrules.PortTaken, "a process of another user than the proxy's holds the proxy's port"},
	{13, netrules.NoRedirect, "--validate: there is no redirect: the CNI plugin did not run on this node, or not\n" +
		"for this pod"},
	{14, netrules.NoGuard, "the redirect works, but another user than the proxy's can answer at its port"},
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
	termlog.Write(o.terminationLog, terminationMessage(err, remedy))
	return code
}

func terminationMessage(err error, remedy string) string {
	message := "proxy-init: " + err.Error()
	if remedy != "" {
		message += ". Remedy: " + remedy
	}
	return message
}
