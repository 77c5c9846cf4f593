package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestCalledAsPlugin(t *testing.T) {
	for path, want := range map[string]bool{
		"kubectl-imds_migrate": true, "/usr/local/bin/kubectl-imds_migrate": true, "bin/kubectl-imds_migrate.exe": true,
		"imds-migrate": false, "/kubectl-imds_migrate/imds-migrate": false, "kubectl-imds_migrate-old": false, "": false,
	} {
		if got := calledAsPlugin(path); got != want {
			t.Errorf("%s: got %t", path, got)
		}
	}
}

// TestRenamer checks what is renamed, also if a text comes in pieces.
func TestRenamer(t *testing.T) {
	const text = "Usage: imds-migrate plan [flags]\n       imds-migrate retire; kubectl imds-migrate verify\n# written by imds-migrate plan.\nname: imds-migrate-report\nimds-migrate: no cluster\nimds-migrate planner\nend imds-migrate check"
	const want = "Usage: kubectl imds-migrate plan [flags]\n       kubectl imds-migrate retire; kubectl imds-migrate verify\n# written by imds-migrate plan.\nname: imds-migrate-report\nimds-migrate: no cluster\nimds-migrate planner\nend kubectl imds-migrate check"
	for size := 1; size <= len(text); size++ {
		var out bytes.Buffer
		r := &renamer{to: &out}
		for rest := text; rest != ""; {
			n := min(size, len(rest))
			if written, err := r.Write([]byte(rest[:n])); written != n || err != nil {
				t.Fatal(written, err)
			}
			rest = rest[n:]
		}
		r.flush()
		if out.String() != want {
			t.Fatalf("pieces of %d: got\n%s", size, &out)
		}
	}
}

// TestPluginKeepsManifests checks that manifests on standard output are not changed.
func TestPluginKeepsManifests(t *testing.T) {
	const manifest = "# imds-migrate plan\nkind: ConfigMap\n"
	var stdout, stderr bytes.Buffer
	code := runPlugin([]string{"uninject"}, strings.NewReader(manifest), &stdout, &stderr)
	if code != exitOK || stdout.String() != manifest {
		t.Errorf("exit code %d, %s%s", code, &stdout, &stderr)
	}
}
