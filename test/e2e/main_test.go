// Package e2e runs the real binaries in a network namespace that stands for a pod.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"imds-oidc-proxy/test/netns"
)

// binaryDirVar tells the process inside the namespace where the programs are.
const binaryDirVar = "IMDS_OIDC_PROXY_E2E_BIN"

// programs are built once, outside the namespace, where modules can be downloaded.
var programs = map[string]string{
	"proxy-init":  "./cmd/proxy-init",
	"redirectpod": "./test/e2e/redirectpod",
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "test/e2e makes network namespaces: run as root")
		return 1
	}
	if netns.Inside() {
		inside, code, err := netns.Enter(false)
		if err != nil {
			fmt.Fprintln(os.Stderr, "test/e2e:", err)
		}
		if !inside {
			return code
		}
		return m.Run()
	}
	dir, err := buildPrograms()
	defer os.RemoveAll(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/e2e:", err)
		return 1
	}
	_, code, err := netns.Enter(false, binaryDirVar+"="+dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/e2e:", err)
	}
	return code
}

// buildPrograms returns a directory that holds the programs and that every user
// can read: the tests run them as others than root.
func buildPrograms() (string, error) {
	dir, err := os.MkdirTemp("", "imds-oidc-proxy-e2e-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return dir, err
	}
	for name, pkg := range programs {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, name), pkg)
		build.Dir = filepath.Join("..", "..")
		if out, err := build.CombinedOutput(); err != nil {
			return dir, fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
		}
	}
	return dir, nil
}

// program is the path of one that was built.
func program(name string) string { return filepath.Join(os.Getenv(binaryDirVar), name) }
