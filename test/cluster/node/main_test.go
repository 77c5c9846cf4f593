// Package node runs pods of this project on a real node: kubelet, containerd and
// runc, with tokens that a real API server signs.
package node

import (
	"context"
	"errors"
	"os"
	"testing"

	"imds-oidc-proxy/test/cluster"
)

// clientModule is an application with Microsoft's SDK for Go and nothing that points
// at the proxy: the SDK's first version with identities, which knows IMDS only.
const clientModule = "../../e2e/clients/azidentity"

// running is the cluster that all tests share, each in a namespace of its own.
var running *cluster.Cluster

func TestMain(m *testing.M) {
	config := cluster.Config{Node: true, Prepare: func(dir string) ([]string, error) {
		if err := cluster.BuildImage(dir, "azidentity", "azidentity", clientModule, "-modfile=v1.0.0.mod", "."); err != nil {
			return nil, err
		}
		// Beside it a program that does nothing, for pods to exec the client in.
		return nil, cluster.BuildImage(dir, "azidentity", "pause", "..", "./pause")
	}}
	os.Exit(cluster.RunTests("node", m, config, func(_ context.Context, c *cluster.Cluster) error {
		running = c
		return nil
	}))
}

var (
	errNoPod       = errors.New("there is no pod yet")
	errNotComplete = errors.New("the Job has not completed")
)
