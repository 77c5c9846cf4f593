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

// Environment variables that the process outside sets for the process inside.
const (
	dirVar        = "CLUSTER_TEST_DIR"        // directory for all files
	cgroupVar     = "CLUSTER_TEST_CGROUP"     // name of the run's cgroup
	kubernetesVar = "CLUSTER_TEST_KUBERNETES" // directory of the Kubernetes programs
)

// startTimeout limits the start of the cluster. With a node, it usually takes 20 seconds;
// a machine under load needs more.
const startTimeout = 3 * time.Minute

// daemonPackages are the Debian packages of the programs that are not built here. They are
// unpacked and not installed, because an installation would start services. They depend
// only on libc and libseccomp, which every Debian system has.
var daemonPackages = []string{"etcd-server", "containerd", "runc", "containernetworking-plugins"}

// RunTests is for TestMain. It builds the missing programs, starts a cluster in new Linux
// namespaces, calls setUp with the cluster, runs the tests, and returns the exit code.
func RunTests(name string, m *testing.M, config Config, setUp func(context.Context, *Cluster) error) int {
	return runInside(name, config, setUp, m.Run)
}

// Run is for the main function of a program: it does what [RunTests] does, with work in place of
// the tests. It returns the program's exit code.
func Run(name string, config Config, work func(*Cluster) error) int {
	var started *Cluster
	return runInside(name, config, func(_ context.Context, c *Cluster) error { started = c; return nil }, func() int {
		if err := work(started); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			return 1
		}
		return 0
	})
}

func runInside(name string, config Config, setUp func(context.Context, *Cluster) error, work func() int) int {
	if isGuard() {
		return 0
	}
	cgroup := fmt.Sprintf("%s%d", cgroupPrefix, os.Getpid())
	var guard *guard
	code := netns.RunMachineTests(name, suite{name, config, setUp, work}, func(dir string) (env []string, err error) {
		if guard, err = startGuard(dir); err != nil {
			return nil, err
		}
		return prepare(dir, cgroup, config)
	})
	if guard != nil {
		if err := guard.stop(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: cannot clean up: %v\n", name, err)
		}
	}
	return code
}

// prepare does the work that needs the machine's network, in the process outside. It
// returns environment variables for the process inside.
func prepare(dir, cgroup string, config Config) ([]string, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	build := exec.Command(filepath.Join(root, "tools/kubernetes"))
	build.Stderr = os.Stderr // shows the progress: the first build takes minutes
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

// repository returns the root directory of this project's source, from any directory in
// this module.
func repository() (string, error) {
	module, err := command("go", "env", "GOMOD")
	if err != nil {
		return "", err
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(module))), nil
}

// suite runs the tests, or a program's work, in the process inside.
type suite struct {
	name   string
	config Config
	setUp  func(context.Context, *Cluster) error
	work   func() int // returns the exit code
}

func (s suite) Run() int {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	began := time.Now()
	c := newCluster(os.Getenv(dirVar))
	err := c.start(ctx, s.config)
	if err == nil {
		err = s.setUp(ctx, c)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: cannot start the cluster: %v\n", s.name, err)
		s.keepLogs(c)
		return 1
	}
	fmt.Printf("%s: the cluster started in %v\n", s.name, time.Since(began).Round(100*time.Millisecond))
	code := s.work()
	if code != 0 {
		s.keepLogs(c)
	}
	return code
}

// keepLogs copies the daemons' logs out of the tmpfs, which is removed with this process.
func (s suite) keepLogs(c *Cluster) {
	kept, err := os.MkdirTemp("", s.name+"-logs-")
	if err == nil {
		err = os.CopyFS(filepath.Join(kept, "daemons"), os.DirFS(c.logs))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: cannot keep the logs: %v\n", s.name, err)
		return
	}
	fmt.Printf("%s: the logs of etcd, the API server and the other daemons are in %s\n", s.name, kept)
}
