// Command podstart measures what injection costs the start of a pod (make bench-pod): on the real
// node of package cluster it starts pods in several forms, by turns, and prints when their
// application ran and when it had its first token. The times count from the call that creates the
// pod. They do not include the webhook's call: the pods are injected before they are created.
//
// The kubelet has its default intervals here. Most of the time is its own: it looks at the
// containers of all pods once a second, and a pod waits for that look where a container has to end
// before the next one starts. So the pods of a form start at evenly spread moments of this second,
// the same for each form. The node has the CNI plugin, which pods of the other forms do not ask.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"imds-oidc-proxy/test/cluster"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	flags := flag.NewFlagSet("podstart", flag.ContinueOnError)
	n := flags.Int("n", 16, "how many pods of each form to start")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err == nil && *n < 1:
		fmt.Fprintf(os.Stderr, "podstart: -n %d: must be at least 1\n", *n)
		return 2
	case err != nil:
		return 2
	}
	return cluster.Run("podstart", cluster.Config{Node: true, Measure: true, Prepare: prepare}, func(c *cluster.Cluster) error {
		if err := installPlugin(c); err != nil {
			return err
		}
		b, err := newBench(c)
		if err != nil {
			return err
		}
		return b.run(*n)
	})
}

// The images of the pods beside this project's.
const (
	clientImage   = "localhost/client:test"
	azwiInitImage = "localhost/azwi-init:test"
)

// pluginVar is the environment variable with the path of imds-cni.
const pluginVar = "PODSTART_IMDS_CNI"

func prepare(dir string) ([]string, error) {
	plugin := filepath.Join(dir, "imds-cni")
	return []string{pluginVar + "=" + plugin}, errors.Join(
		cluster.Build(plugin, "../..", "./cmd/imds-cni"),
		cluster.BuildImage(dir, "client", "client", "podstart", "./client"),
		cluster.CopyImage(dir, "azwi-init", "tools/azwi-init", filepath.Join(".cache", "cluster-azwi-init")))
}

// installPlugin starts the program that installs the CNI plugin on the node, and waits until the
// plugin is in the node's list.
func installPlugin(c *cluster.Cluster) error {
	ctx, cancel := context.WithTimeout(context.Background(), podTimeout)
	defer cancel()
	install := exec.Command(os.Getenv(pluginVar), "install", "--bin-dir="+c.CNIPrograms(), "--conf-dir="+c.CNIConfig(), "--health-address=", "--log-level=error")
	install.Stderr = os.Stderr
	if err := install.Start(); err != nil { // it ends with the cluster
		return err
	}
	return cluster.Wait(ctx, func(context.Context) error {
		list, err := os.ReadFile(filepath.Join(c.CNIConfig(), cluster.CNIList))
		if err == nil && !strings.Contains(string(list), `"imds-cni"`) {
			err = fmt.Errorf("the plugin is not in the node's list:\n%s", list)
		}
		return err
	})
}
