// Package apiserver asks a real API server what it thinks of this project's manifests
// and of what is injected into pods. There is no node: pods are made and read back.
package apiserver

import (
	"os"
	"testing"

	"imds-oidc-proxy/test/cluster"
)

// running is the cluster that all tests share, each in a namespace of its own.
var running *cluster.Cluster

func TestMain(m *testing.M) {
	os.Exit(cluster.RunTests("apiserver", m, cluster.Config{}, func(c *cluster.Cluster) { running = c }))
}
