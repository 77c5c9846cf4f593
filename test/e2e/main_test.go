// Package e2e runs the real binaries in a pod-like network namespace: real iptables,
// the real MSAL, unmodified clients with the metadata address compiled into them.
//
// The test binary starts itself again inside a namespace of its own (package netns),
// so that no packet to the metadata address can leave the machine. That takes root.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/test/kit/netns"
)

// binariesVar tells the process inside the namespace where the one outside, which
// can reach a module proxy, has built the binaries.
const binariesVar = "E2E_BINARIES"

// programs are what is under test, and what helps to test it.
var programs = map[string]string{
	"proxy":       "../../cmd/proxy",
	"proxy-init":  "../../cmd/proxy-init",
	"redirectpod": "./redirectpod",
}

// azidentityVersions are the versions of the Go SDK that are built, by the mod file
// that pins each.
var azidentityVersions = []string{"v1.0.0", "v1.3.0", "newest"}

func TestMain(m *testing.M) {
	os.Exit(netns.RunTests("e2e", m, func(dir string) ([]string, error) {
		return []string{binariesVar + "=" + dir}, buildBinaries(dir)
	}))
}

// buildBinaries builds the programs, with the race detector where the test itself
// has it, and the clients.
func buildBinaries(dir string) error {
	for name, source := range programs {
		if err := goBuild(".", "-race="+fmt.Sprint(raceEnabled), "-o", filepath.Join(dir, name), source); err != nil {
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

// program is the path of one that was built.
func program(name string) string { return filepath.Join(os.Getenv(binariesVar), name) }

// clearRules removes every rule of either backend, so that a scenario starts from
// a pod that is new.
func clearRules(t *testing.T) {
	t.Helper()
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
