package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/netrules"
)

// TestExitCodes checks that each kind of failure has its own exit code, and that --help lists
// all exit codes.
func TestExitCodes(t *testing.T) {
	seen := map[int]netrules.Kind{exitOK: -1, exitFailure: -1, exitUsage: -1}
	for kind := netrules.MissingCapability; kind <= netrules.NoGuard; kind++ {
		code := exitCode(kind)
		if want := int(kind) + 2; code != want { // exit codes must not change
			t.Errorf("kind %d exits with %d, want %d", kind, code, want)
		}
		if other, taken := seen[code]; taken {
			t.Errorf("kinds %d and %d both exit with %d", other, kind, code)
		}
		seen[code] = kind
	}
	for code := range seen {
		if !strings.Contains(exitHelp(), fmt.Sprintf("\n  %2d  ", code)) {
			t.Errorf("--help does not explain exit code %d", code)
		}
	}
	if got := exitCode(0); got != exitFailure {
		t.Errorf("an unknown kind exits with %d, want %d", got, exitFailure)
	}
}

func TestReport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "termination-log")
	if err := os.WriteFile(path, []byte("the message of an earlier run, which is longer than the new message"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	o := options{terminationLog: path}
	err := fmt.Errorf("while at it: %w", &netrules.Error{Kind: netrules.LockHeld, Cause: "the lock\nis held", Remedy: "wait"})
	if code := report(o, logging.New(&log, o.log), err); code != exitCode(netrules.LockHeld) {
		t.Errorf("exit code %d, want %d", code, exitCode(netrules.LockHeld))
	}
	got, readErr := os.ReadFile(path)
	if want := "proxy-init: while at it: the lock is held. Remedy: wait"; readErr != nil || string(got) != want {
		t.Errorf("termination message %q (%v), want %q", got, readErr, want)
	}
	var entry struct {
		Level, Msg, Error, Remedy string
		ExitCode                  int `json:"exit_code"`
	}
	if err := json.Unmarshal(log.Bytes(), &entry); err != nil {
		t.Fatalf("%v in %s", err, log.String())
	}
	if entry.Level != "error" || entry.Msg != "redirect not installed" || entry.Remedy != "wait" || entry.ExitCode != exitCode(netrules.LockHeld) {
		t.Errorf("log entry %+v", entry)
	}
}

func TestTerminationLog(t *testing.T) {
	t.Run("invalid variable", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "termination-log")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		tryRun(t, map[string]string{"PROXY_PORT": "eighty", "PROXY_TERMINATION_LOG": path})
		got, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(got), "PROXY_PORT") {
			t.Errorf("termination message %q (%v), want one with PROXY_PORT", got, err)
		}
	})
	t.Run("usage", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "termination-log")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		tryRun(t, map[string]string{"PROXY_PORT": "0"}, "--termination-log="+path)
		got, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(got), "PROXY_PORT") {
			t.Errorf("termination message %q (%v), want one that names PROXY_PORT", got, err)
		}
	})
}
