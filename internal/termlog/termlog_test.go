package termlog_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/termlog"
)

// written returns what is in the file after a message was written over an earlier one.
func written(t *testing.T, message string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "termination-log")
	if err := os.WriteFile(path, []byte("an earlier message, which is longer than most others in this test"), 0o600); err != nil {
		t.Fatal(err)
	}
	termlog.Write(path, message)
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

func TestWrite(t *testing.T) {
	for name, c := range map[string]struct{ message, want string }{
		"one line":                {"proxy: not ready", "proxy: not ready"},
		"several lines":           {"not ready:\nfirst\r\nsecond\tthird", "not ready: first  second third"},
		"escapes of a terminal":   {"not ready: \x1b[2J\x9b", "not ready: ?[2J?"},
		"invalid UTF-8":           {"not ready: \xff", "not ready: ?"},
		"longer than the limit":   {strings.Repeat("x", 5000), strings.Repeat("x", 4096)},
		"cut inside a character":  {strings.Repeat("x", 4095) + "é", strings.Repeat("x", 4095)},
		"exactly as long as that": {strings.Repeat("x", 4094) + "é", strings.Repeat("x", 4094) + "é"},
	} {
		if got := written(t, c.message); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestClear(t *testing.T) {
	path := filepath.Join(t.TempDir(), "termination-log")
	if err := os.WriteFile(path, []byte("not ready"), 0o600); err != nil {
		t.Fatal(err)
	}
	termlog.Clear(path)
	if got, err := os.ReadFile(path); err != nil || len(got) > 0 {
		t.Errorf("%q, %v, want an empty file", got, err)
	}
}

// TestNotCreated checks that no file is created, with either function and with an empty path.
func TestNotCreated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "termination-log")
	termlog.Write(path, "anything")
	termlog.Clear(path)
	termlog.Write("", "anything")
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file exists: %v", err)
	}
}
