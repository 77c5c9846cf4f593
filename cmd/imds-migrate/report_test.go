package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestReportErrors: one line says what is wrong.
func TestReportErrors(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--kubeconfig=" + gone}, 1, "imds-migrate: no cluster: stat " + gone + ": no such file or directory: set --kubeconfig and --context"},
		{[]string{"--period=0d"}, 2, `imds-migrate: --period "0d": must be days or hours, such as 35d or 12h`},
		{[]string{"--prometheus=prometheus:9090"}, 2, "imds-migrate: --prometheus must be a URL, such as http://127.0.0.1:9090\n"},
		{[]string{"--prometheus=http://user:pa%ss@h"}, 2, "imds-migrate: --prometheus must be a URL, such as http://127.0.0.1:9090\n"},
		{[]string{"--prometheus=http://h", "--prometheus-label=a-b=c"}, 2, `imds-migrate: --prometheus-label "a-b=c": must be a label and its value, such as cluster=prod`},
		{[]string{"--prometheus-label=a=b"}, 2, "imds-migrate: --prometheus-label needs --prometheus\n"},
		{[]string{"--timeout=0s"}, 2, `imds-migrate: --timeout "0s": must be more than zero`},
		{[]string{"--output=pdf"}, 2, `imds-migrate: --output "pdf": must be table, wide, json, yaml, markdown, csv or html`},
		{[]string{"deploy/web"}, 2, `imds-migrate: unexpected argument "deploy/web"`},
	} {
		var stdout, stderr bytes.Buffer
		code := run(append([]string{"report"}, c.args...), nil, &stdout, &stderr)
		if code != c.code || !strings.HasPrefix(stderr.String(), c.want) || strings.Count(stderr.String(), "\n") != 1 || stdout.Len() > 0 {
			t.Errorf("%q: exit code %d, %s%s, want %d, %s", c.args, code, &stdout, &stderr, c.code, c.want)
		}
	}
}

func TestParsePeriod(t *testing.T) {
	for text, want := range map[string]time.Duration{"35d": 35 * 24 * time.Hour, "12h": 12 * time.Hour, "1d": 24 * time.Hour, "90m": 90 * time.Minute} {
		if got, err := parsePeriod(text); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0d", "-1d", "1.5d", "35", "d", "0h", "-5h", "99999999999d", "3651d", "x"} {
		if got, err := parsePeriod(text); err == nil {
			t.Errorf("%q: got %s, want an error", text, got)
		}
	}
}
