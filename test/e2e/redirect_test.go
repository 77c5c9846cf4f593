package e2e

import (
	"os/exec"
	"testing"
)

func TestRedirectDryRun(t *testing.T) {
	out, err := exec.Command(program("proxy-init"), "--dry-run").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
