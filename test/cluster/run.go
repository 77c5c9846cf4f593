package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/bases"
	"imds-oidc-proxy/test/kit/netns"
)

// What the process outside tells the one inside.
const (
	dirVar        = "CLUSTER_TEST_DIR"        // where to work
	cgroupVar     = "CLUSTER_TEST_CGROUP"     // the name of the run's cgroup
	kubernetesVar = "CLUSTER_TEST_KUBERNETES" // where Kubernetes' programs are
)

// startTimeout is for a machine under load; 20 seconds are usual, with a node.
const startTimeout = 3 * time.Minute

// daemonPackages are Debian's packages of what is not built here. Unpacked and not
// installed: theirs would start services. They need nothing but libc and libseccomp,
// which Debian always has.
var daemonPackages = []string{"etcd-server", "containerd", "runc", "containernetworking-plugins"}

// RunTests is what a TestMain does: it builds what is missing, starts a cluster in
// namespaces of its own, hands it to started, and runs the tests.
func RunTests(name string, m *testing.M, config Config, started func(context.Context, *Cluster) error) int {
	if isGuard() {
		return 0
	}
	cgroup := fmt.Sprintf("%s%d", cgroupPrefix, os.Getpid())
	var guard *guard
	code := netns.RunMachineTests(name, suite{name, m, config, started}, func(dir string) (env []string, err error) {
		if guard, err = startGuard(dir); err != nil {
			return nil, err
		}
		return prepare(dir, cgroup, config)
	})
	if guard != nil {
		if err := guard.end(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: cannot clean up: %v\n", name, err)
		}
	}
	return code
}

// prepare does what needs the world outside.
func prepare(dir, cgroup string, config Config) ([]string, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	build := exec.Command(filepath.Join(root, "tools/kubernetes"))
	build.Stderr = os.Stderr // minutes, the first time
	kubernetes, err := build.Output()
	if err != nil {
		return nil, fmt.Errorf("tools/kubernetes: %w", err)
	}
	daemons := filepath.Join(root, ".cache/cluster-daemons")
	if _, err := command(filepath.Join(root, "tools/debs"), append([]string{daemons}, daemonPackages...)...); err != nil {
		return nil, err
	}
	path := strings.Join([]string{daemons + "/usr/bin", daemons + "/usr/sbin", os.Getenv("PATH"), "/usr/sbin", "/sbin"}, ":")
	env := []string{dirVar + "=" + dir, cgroupVar + "=" + cgroup, kubernetesVar + "=" + strings.TrimSpace(string(kubernetes)), "PATH=" + path}
	if config.Node {
		basesEnv, err := bases.Config{Dir: dir, Repository: root}.Fetch()
		if err != nil {
			return nil, err
		}
		env = append(env, basesEnv...)
		if err := BuildImage(dir, "pause", "pause", filepath.Join(root, "test/cluster"), "./pause"); err != nil {
			return nil, err
		}
	}
	if config.Prepare != nil {
		more, err := config.Prepare(dir)
		if err != nil {
			return nil, err
		}
		env = append(env, more...)
	}
	return env, nil
}

// repository is the root of this project's source, wherever in it a test runs.
func repository() (string, error) {
	module, err := command("go", "env", "GOMOD")
	if err != nil {
		return "", err
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(module))), nil
}

// suite is what runs inside.
type suite struct {
	name    string
	m       *testing.M
	config  Config
	started func(context.Context, *Cluster) error
}

func (s suite) Run() int {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	began := time.Now()
	c := newCluster(os.Getenv(dirVar))
	err := c.start(ctx, s.config)
	if err == nil {
		err = s.started(ctx, c)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: cannot start the cluster: %v\n", s.name, err)
		s.keepLogs(c)
		return 1
	}
	fmt.Printf("%s: the cluster is up after %v\n", s.name, time.Since(began).Round(100*time.Millisecond))
	code := s.m.Run()
	if code != 0 {
		s.keepLogs(c)
	}
	return code
}

// keepLogs saves what the daemons said from what ends with this process.
func (s suite) keepLogs(c *Cluster) {
	kept, err := os.MkdirTemp("", s.name+"-logs-")
	if err == nil {
		err = os.CopyFS(filepath.Join(kept, "daemons"), os.DirFS(c.logs))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: cannot keep the logs: %v\n", s.name, err)
		return
	}
	fmt.Printf("%s: what etcd, the API server and the rest said is in %s\n", s.name, kept)
}
