package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/netrules"
)

// Exit codes, which --help lists. They are an interface:
// never renumbered.
const (
	exitOK            = 0
	exitFailure       = 1
	exitUsage         = 2
	exitCapability    = 3
	exitNoBinary      = 4
	exitLock          = 5
	exitModule        = 6
	exitBackend       = 7
	exitRulesDiffer   = 8
	exitNotRedirected = 9
	exitHostNetwork   = 10
	exitTimeout       = 11
	exitPortTaken     = 12
)

const exitCodesHelp = `Exit codes:
   0  done (--check: the rules are all there, and first)
   1  any other failure
   2  a wrong flag or variable
   3  a capability is missing: NET_ADMIN, and for legacy NET_RAW too (--check: also
      where the kernel has legacy tables here, and they cannot be seen without it)
   4  no iptables binary for the backend
   5  the xtables lock is held, or its file cannot be opened
   6  the kernel lacks a module, such as xt_owner or nf_nat
   7  the backend's tables cannot be used
   8  the rules read back are not the planned ones (--check: not all there, or not first)
   9  the rules are there, and a connection did not arrive at the proxy's port
  10  this is a node's own network namespace
  11  iptables did not end in time
  12  a process of another user than the proxy's holds the proxy's port
`

// exitCode is the one place where a kind of failure becomes an exit code.
func exitCode(k netrules.Kind) int {
	switch k {
	case netrules.MissingCapability:
		return exitCapability
	case netrules.NoBinary:
		return exitNoBinary
	case netrules.LockHeld:
		return exitLock
	case netrules.MissingModule:
		return exitModule
	case netrules.WrongBackend:
		return exitBackend
	case netrules.RulesDiffer:
		return exitRulesDiffer
	case netrules.NotRedirected:
		return exitNotRedirected
	case netrules.HostNetwork:
		return exitHostNetwork
	case netrules.TimedOut:
		return exitTimeout
	case netrules.PortTaken:
		return exitPortTaken
	}
	return exitFailure
}

// report says cause and remedy in one line, to the log and to the kubelet, and
// returns the exit code.
func report(o options, log *zap.Logger, err error) int {
	code, remedy := exitFailure, ""
	var failure *netrules.Error
	if errors.As(err, &failure) {
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

// maxTermination is what the kubelet keeps of a termination message.
const maxTermination = 4096

// writeTermination leaves the message where `kubectl describe pod` shows it. The
// kubelet makes the file: where there is none, nobody reads it.
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
