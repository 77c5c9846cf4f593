// Package attack measures what one hostile container of a pod can do to the others. The real
// proxy runs behind the real redirect, in a memory cgroup with the limit that injection sets. The
// attacker and a well-behaved client both run as the application's user, without capabilities.
//
// The programs are built without the race detector, which needs several times the memory. The
// tests need root, to create namespaces and cgroups.
//
// `make attack` prints the results as a table.
package attack

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/test/kit/netns"
)

// binariesVar is the environment variable with the directory of the binaries. The process outside
// the namespace builds them, because only it can reach a module proxy, and the process inside uses
// them.
const binariesVar = "ATTACK_BINARIES"

func TestMain(m *testing.M) {
	code := netns.RunTests("attack", tests{m}, func(dir string) ([]string, error) {
		return []string{binariesVar + "=" + dir}, buildBinaries(dir)
	})
	os.Exit(code)
}

// tests runs the tests of this package, inside the namespace.
type tests struct{ m *testing.M }

// timeWaitBuckets is how many closed connections the namespace keeps in TIME_WAIT. With the
// kernel's default, one attack could use up the local ports that the next one needs.
const timeWaitBuckets = "1000"

func (t tests) Run() int {
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte(timeWaitBuckets), 0); err != nil {
		fmt.Fprintf(os.Stderr, "attack: %v\n", err)
		return 1
	}
	code := t.m.Run()
	printTable(os.Stdout)
	return code
}

func buildBinaries(dir string) error {
	for name, source := range map[string]string{"proxy": "../../cmd/proxy", "proxy-init": "../../cmd/proxy-init", "client": "./client"} {
		cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), source)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as for the images
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	return nil
}

// program returns the path of a binary that buildBinaries has built.
func program(name string) string { return filepath.Join(os.Getenv(binariesVar), name) }
