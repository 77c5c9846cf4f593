// Package e2e tests the real binaries in a network namespace that is set up as a pod, with
// real iptables, the real MSAL and unmodified clients, which have the metadata address
// compiled in.
//
// The test binary runs itself again in a new network namespace (package netns), so that no
// packet to the metadata address can leave the machine. This requires root.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/test/kit/local"
	"imds-oidc-proxy/test/kit/netns"
)

// binariesVar is the environment variable with the directory of the binaries. The process
// outside the namespace builds them, because only it can reach a module proxy.
const binariesVar = "E2E_BINARIES"

// programs are the programs under test, and a helper program.
var programs = map[string]string{
	"proxy":       "../../cmd/proxy",
	"proxy-init":  "../../cmd/proxy-init",
	"imds-cni":    "../../cmd/imds-cni",
	"redirectpod": "./redirectpod",
}

// azidentityVersions are the versions of the Go SDK that are tested. Each has a mod file.
var azidentityVersions = []string{"v1.0.0", "v1.3.0", "newest"}

func TestMain(m *testing.M) {
	os.Exit(netns.RunTests("e2e", m, func(dir string) ([]string, error) {
		return []string{binariesVar + "=" + dir}, buildBinaries(dir)
	}))
}

// buildBinaries builds the clients and the programs. If the test has the race detector, the
// programs have it too.
func buildBinaries(dir string) error {
	for name, source := range programs {
		if err := goBuild(".", "-race="+fmt.Sprint(local.RaceEnabled), "-o", filepath.Join(dir, name), source); err != nil {
			return err
		}
	}
	for _, version := range azidentityVersions {
		mod := version + ".mod"
		if version == "newest" {
			mod = "go.mod"
		}
		if err := goBuild("clients/azidentity", "-modfile="+mod, "-o", filepath.Join(dir, "azidentity-"+version), "."); err != nil {
			return err
		}
	}
	return nil
}

func goBuild(dir string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-buildvcs=false"}, args...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// program returns the path of a binary.
func program(name string) string { return filepath.Join(os.Getenv(binariesVar), name) }

// clearRules removes all rules of all backends, so that a test starts with a new pod.
func clearRules(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("nft", "add table inet imds_proxy; delete table inet imds_proxy").CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	for _, iptables := range []string{"iptables-nft", "iptables-legacy"} {
		for _, table := range []string{"nat", "filter"} {
			for _, action := range []string{"-F", "-X"} {
				if out, err := exec.Command(iptables, "-t", table, action).CombinedOutput(); err != nil {
					t.Fatalf("%s -t %s %s: %v: %s", iptables, table, action, err, out)
				}
			}
		}
	}
}
