package output_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/internal/output"
	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/retire"
)

// removal is a removal with a step of each form.
func removal(check string) *retire.Retirement {
	return &retire.Retirement{Cluster: "shop", Observed: time.Date(2026, 12, 1, 9, 0, 0, 0, time.UTC), Steps: []retire.Step{
		{Title: "first", Reason: "a reason", Checks: []retire.Check{{Command: check, Failed: "it's not ready"}}, Commands: []string{"kubectl one", "kubectl two"},
			Patch: &plan.Patch{Group: "apps", Version: "v1", Kind: "Deployment", Namespace: "ns", Name: "web", Changes: []plan.Change{{Path: []string{"spec", "template", "metadata", "labels", "aadpodidbinding"}, Remove: true}}}},
		{Title: "second", Checks: []retire.Check{{Command: "kubectl ready", Failed: "it takes too long", Wait: true}}, Commands: []string{`az delete --name "$CLUSTER"`}, Azure: true},
		{Title: "third", ByHand: "look at it; $(touch x)", Commands: []string{"kubectl never"}},
		{Title: "fourth", Commands: []string{"kubectl last"}},
	}, Stays: []retire.Stay{{Namespace: "ns", Name: "deploy/app", Reason: "needed"}}, NotRead: []string{"rollouts"}, Search: "git grep x"}
}

// TestRetireScript runs a script with programs that record their arguments: it stops at a check or a command
// that fails, waits where it is worth it, and runs no command of a step by hand.
func TestRetireScript(t *testing.T) {
	for name, c := range map[string]struct {
		check, fails string // a command of the stand-ins that fails
		cluster      string
		code         int
		stderr       string
		calls        string
	}{
		"all succeed":           {"true", "", "shop", 0, "", "kubectl one\nkubectl two\nkubectl ready\naz delete --name shop\nkubectl last\n"},
		"a check fails":         {"false", "", "shop", 1, "stopped: step 1: it's not ready\n", ""},
		"a command fails":       {"true", "kubectl two", "shop", 1, "", "kubectl one\nkubectl two\n"},
		"it takes too long":     {"true", "kubectl ready", "shop", 1, "stopped: step 2: it takes too long\n", "kubectl one\nkubectl two\n" + strings.Repeat("kubectl ready\n", 120)},
		"a variable is missing": {"true", "", "", 2, "CLUSTER: must be the name of the cluster in Azure", ""},
	} {
		dir := t.TempDir()
		for _, program := range []string{"kubectl", "az"} {
			text := "#!/bin/sh\necho " + program + " \"$@\" >> '" + dir + "/calls'\n[ \"" + program + " $*\" != \"$FAILS\" ]\n"
			if err := os.WriteFile(filepath.Join(dir, program), []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "sleep"), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		var script, stderr bytes.Buffer
		if err := output.WriteRetirement(&script, removal(c.check), "sh"); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-s")
		cmd.Dir, cmd.Stdin, cmd.Stderr = dir, &script, &stderr
		cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "FAILS=" + c.fails, "CLUSTER=" + c.cluster}
		_ = cmd.Run()
		calls, _ := os.ReadFile(filepath.Join(dir, "calls"))
		if cmd.ProcessState.ExitCode() != c.code || !strings.HasSuffix(strings.TrimSpace(stderr.String()), strings.TrimSpace(c.stderr)) || string(calls) != c.calls {
			t.Errorf("%s: exit code %d, %q, calls\n%s", name, cmd.ProcessState.ExitCode(), &stderr, calls)
		}
		if _, err := os.Stat(filepath.Join(dir, "x")); err == nil {
			t.Errorf("%s: a text was run", name)
		}
	}
}

// TestRetireFormats checks that each format has all that matters, and that the patch is only of manifests.
func TestRetireFormats(t *testing.T) {
	for format, want := range map[string][]string{
		"text": {"Cluster shop. Report of 2026-12-01 09:00Z.", "CLUSTER is the name of the cluster in Azure.", "1. first\n   a reason\n   check: true\n   kubectl one\n   kubectl two\n", "   check, some minutes: kubectl ready\n",
			"   by hand: look at it; $(touch x)\n", "Stays:\n  ns deploy/app: needed\n", "Not read:\n  rollouts\n", "Nothing was changed"},
		"sh":    {"#!/bin/sh\n", "# Stays: ns deploy/app: needed\n", "# Not read: rollouts\n", "# kubectl never\n"},
		"json":  {`"command": "true"`, `"schema": ""`, `"byHand": "look at it; $(touch x)"`},
		"patch": {"# Stays: ns deploy/app: needed\n", "kind: Component\n", "aadpodidbinding: null\n"},
	} {
		var text bytes.Buffer
		if err := output.WriteRetirement(&text, removal("true"), format); err != nil {
			t.Fatal(err)
		}
		for _, part := range want {
			if !strings.Contains(text.String(), part) {
				t.Errorf("%s: no %q in\n%s", format, part, &text)
			}
		}
	}
	if err := output.WriteRetirement(new(bytes.Buffer), removal("true"), "xml"); err == nil {
		t.Error("an unknown format is accepted")
	}
}
