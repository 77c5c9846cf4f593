package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/internal/output"
	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/report"
	"imds-oidc-proxy/internal/retire"
)

// writeReport writes a report about the sidecars of the example cluster.
func writeReport(t *testing.T, age time.Duration) string {
	t.Helper()
	r := report.Report{Schema: report.Schema, Time: time.Now().Add(-age), Workloads: []report.Workload{
		{Namespace: "done", Group: "apps", Kind: "Deployment", Name: "sidecar", Verdict: report.CanGo, Text: "nobody has asked for 40 days"},
		{Namespace: "done", Group: "apps", Kind: "Deployment", Name: "old-sidecar", Verdict: report.Needed, Text: "upgrade adal"},
	}}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestRetire checks the commands for the example cluster in each format.
func TestRetire(t *testing.T) {
	file := writeReport(t, 0)
	args := []string{"retire", "--filename=testdata/cluster", "--report=" + file}
	for _, format := range output.RetireFormats {
		stdout, stderr, code := command(append(args[:len(args):len(args)], "--output="+format), "")
		if code != plan.ExitWork || stderr != "" {
			t.Fatalf("%s: exit code %d, %s", format, code, stderr)
		}
		if again, _, _ := command(append(args[:len(args):len(args)], "--output="+format), ""); again != stdout {
			t.Errorf("%s: a second run gives other bytes", format)
		}
		switch format {
		case "json":
			var r retire.Retirement
			if err := json.Unmarshal([]byte(stdout), &r); err != nil || len(r.Steps) != 3 || r.Steps[0].Title != "remove the sidecar of done deploy/sidecar" {
				t.Errorf("%v, %+v", err, r.Steps)
			}
		case "patch": // the sidecar of done is written into its manifest
			if !strings.Contains(stdout, "# remove the label aadpodidbinding of done deploy/old-sidecar\n") {
				t.Errorf("%s:\n%s", format, stdout)
			}
		default:
			for _, part := range []string{"1. remove the sidecar of done deploy/sidecar", "done deploy/old-sidecar: report: needed: upgrade adal"} {
				if !strings.Contains(stdout, part) {
					t.Errorf("%s: no %q in\n%s", format, part, stdout)
				}
			}
		}
	}
	// The report from a pipe.
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := command([]string{"retire", "--filename=testdata/cluster", "--report=-", "--namespace=done", "--exit-zero"}, string(text))
	if code != 0 || stderr != "" || strings.Contains(stdout, "AzureIdentityBinding/") || !strings.Contains(stdout, "aad-pod-identity: it is for the whole cluster, and only namespace done was read") {
		t.Errorf("one namespace: exit code %d, %s%s", code, stderr, stdout)
	}
}

// TestRetireErrors: one line says what is wrong.
func TestRetireErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	old, cut, list, two := writeReport(t, 25*time.Hour), write("cut", `{"time": "2026-12-01`), write("list", "[]"), write("two", `{"schema": "imds-migrate.report/v1", "time": "2026-12-01T00:00:00Z", "workloads": []}{}`)
	other := write("other", `{"schema": "imds-migrate.report/v2", "time": "2026-12-01T00:00:00Z", "workloads": []}`)
	const example = "--filename=testdata/cluster"
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--kubeconfig=" + dir + "/gone"}, 1, "imds-migrate: no cluster: stat " + dir + "/gone: no such file or directory: set --kubeconfig and --context, or --filename to read exported objects"},
		{[]string{example, "--report=" + dir + "/gone"}, 1, "imds-migrate: open " + dir + "/gone: no such file or directory"},
		{[]string{example, "--report=" + old}, 1, "imds-migrate: --report " + old + ": the report is 25 hours old, and somebody may have asked since: make a new one (it may be 24 hours old)"},
		{[]string{example, "--report=" + cut}, 1, "imds-migrate: --report " + cut + ": must be the output of imds-migrate report --output=json, of this version: unexpected EOF"},
		{[]string{example, "--report=" + list}, 1, "imds-migrate: --report " + list + ": must be the output of imds-migrate report --output=json, of this version: json: cannot unmarshal array into Go value of type report.Report"},
		{[]string{example, "--report=" + two}, 1, "imds-migrate: --report " + two + ": must be the output of imds-migrate report --output=json, of this version"},
		{[]string{example, "--report=" + other}, 1, "imds-migrate: --report " + other + ": must be the output of imds-migrate report --output=json, of this version"},
		{[]string{example, "--output=pdf"}, 2, `imds-migrate: --output "pdf": must be text, sh, patch or json`},
		{[]string{"--filename=-", "--report=-"}, 2, "imds-migrate: --report and --filename must not both be -: standard input can be read once"},
		{[]string{"--cluster=shop"}, 2, "imds-migrate: --cluster must not be set: the commands of helm have no such flag; set --context"},
		{[]string{"-A", "-n", "shop"}, 2, "imds-migrate: --all-namespaces and --namespace must not be set together"},
		{[]string{example, "deploy/web"}, 2, `imds-migrate: unexpected argument "deploy/web": imds-migrate retire takes flags only (see imds-migrate retire --help)`},
	} {
		stdout, stderr, code := command(append([]string{"retire"}, c.args...), "")
		if code != c.code || stderr != c.want+"\n" || stdout != "" {
			t.Errorf("%q: exit code %d, %s%s, want %d, %s", c.args, code, stdout, stderr, c.code, c.want)
		}
	}
}
