package logging_test

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"imds-oidc-proxy/internal/logging"
)

// parse parses the flags of a command that has only these two.
func parse(args ...string) (logging.Config, error) {
	var cfg logging.Config
	flags := pflag.NewFlagSet("command", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	cfg.AddFlags(flags)
	return cfg, flags.Parse(args)
}

// lines returns the log of one entry of each level.
func lines(cfg logging.Config) string {
	var out bytes.Buffer
	log := logging.New(&out, cfg)
	log.Debug("debug")
	log.Info("info")
	log.Warn("warn")
	log.Error("error")
	return out.String()
}

// TestLevels: each level logs entries of itself and of higher levels. All levels of
// azure-workload-identity's proxy are accepted.
func TestLevels(t *testing.T) {
	for level, want := range map[string]int{
		"error": 1, "warn": 2, "warning": 2, "info": 3, "": 3, "debug": 4, "trace": 4, "all": 4,
	} {
		cfg, err := parse("--log-level=" + level)
		if err != nil {
			t.Errorf("%q: %v", level, err)
			continue
		}
		if got := strings.Count(lines(cfg), "\n"); got != want {
			t.Errorf("%q: got %d lines, want %d", level, got, want)
		}
	}
	if got := strings.Count(lines(logging.Config{}), "\n"); got != 3 {
		t.Errorf("no level: got %d lines, want 3, from info", got)
	}
}

func TestFormats(t *testing.T) {
	var entry map[string]any
	if err := json.Unmarshal([]byte(strings.Split(lines(logging.Config{}), "\n")[0]), &entry); err != nil || entry["msg"] != "info" {
		t.Errorf("no format: got %v, %v, want JSON", entry, err)
	}
	if stamp, err := time.Parse(time.RFC3339Nano, entry["time"].(string)); err != nil || time.Since(stamp) > time.Hour {
		t.Errorf("got time %v, want the current time", entry["time"])
	}
	cfg, err := parse("--log-format=console")
	if err != nil {
		t.Fatal(err)
	}
	if out := lines(cfg); strings.Contains(out, "{") || !strings.Contains(out, "\tinfo\tinfo\n") {
		t.Errorf("console: got %q", out)
	}
}

func TestDurations(t *testing.T) {
	var out bytes.Buffer
	logging.New(&out, logging.Config{}).Info("x", zap.Duration("took", 1500*time.Millisecond))
	if !strings.Contains(out.String(), `"took":"1.5s"`) {
		t.Errorf("got %s", &out)
	}
}

// TestErrors: an error is one line that names the flag and the values it accepts.
func TestErrors(t *testing.T) {
	for arg, want := range map[string]string{
		"--log-level=loud":   "must be error, warn, info, debug, trace or all",
		"--log-level=INFO":   "must be error, warn, info, debug, trace or all",
		"--log-format=xml":   "must be json or console",
		"--log-format=":      "must be json or console",
		"--log-format=json ": "must be json or console",
	} {
		_, err := parse(arg)
		flag, _, _ := strings.Cut(arg, "=")
		if err == nil || !strings.Contains(err.Error(), flag) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line with %s: %s", arg, err, flag, want)
		}
	}
}

// TestDefaultsInHelp: the help text shows the defaults.
func TestDefaultsInHelp(t *testing.T) {
	var cfg logging.Config
	flags := pflag.NewFlagSet("command", pflag.ContinueOnError)
	cfg.AddFlags(flags)
	for _, want := range []string{"--log-level level", "(default info)", "--log-format format", "(default json)"} {
		if usage := flags.FlagUsages(); !strings.Contains(usage, want) {
			t.Errorf("got %s, want %s", usage, want)
		}
	}
}
