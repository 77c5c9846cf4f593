// Package attack shows what one hostile container of the pod can do to the others: the
// real proxy, in a memory cgroup as large as injection makes it, behind the real redirect.
// Attacker and polite client both run as the application's user, without capabilities.
//
// The programs are built without the race detector, which takes several times the memory.
// Making namespaces and cgroups takes root.
//
// The table at the end is what `make attack` prints.
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

// binariesVar tells the process inside the namespace where the one outside, which
// can reach a module proxy, has built the binaries.
const binariesVar = "ATTACK_BINARIES"

func TestMain(m *testing.M) {
	code := netns.RunTests("attack", tests{m}, func(dir string) ([]string, error) {
		return []string{binariesVar + "=" + dir}, buildBinaries(dir)
	})
	os.Exit(code)
}

// tests are those of this package, run inside the namespace.
type tests struct{ m *testing.M }

// waitingBuckets is how many closed connections the namespace keeps in TIME_WAIT. With the
// kernel's own number, one attack would leave the next without free ports.
const waitingBuckets = "1000"

func (t tests) Run() int {
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte(waitingBuckets), 0); err != nil {
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
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as the images have it
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	return nil
}

// program is the path of one that was built.
func program(name string) string { return filepath.Join(os.Getenv(binariesVar), name) }
