// Package node tests pods of this project on a real node (kubelet, containerd and
// runc), with tokens that a real API server signs.
package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"imds-oidc-proxy/test/cluster"
)

// clientModule is an application with Microsoft's SDK for Go and nothing that points
// at the proxy: the SDK's first version with identities, which knows IMDS only.
const clientModule = "../../e2e/clients/azidentity"

// olderModule has the SDK before that one, adal, which asks in its own way.
const olderModule = "../../compat/drivers/go"

// oldStyleLabel, on a namespace, asks with "yes" for the webhook of a cluster without
// native sidecars, and with "no" for none.
const oldStyleLabel = "test/old-style"

// migrateVar tells the process inside where imds-migrate is.
const migrateVar = "NODE_TEST_IMDS_MIGRATE"

// running is the cluster that all tests share, each in a namespace of its own.
var running *cluster.Cluster

func TestMain(m *testing.M) {
	config := cluster.Config{Node: true, Prepare: func(dir string) ([]string, error) {
		if err := cluster.BuildImage(dir, "azidentity", "azidentity", clientModule, "-modfile=v1.0.0.mod", "."); err != nil {
			return nil, err
		}
		if err := cluster.BuildImage(dir, "azidentity", "adal", olderModule, "-modfile=versions/adal-0.9.24.mod", "./adal"); err != nil {
			return nil, err
		}
		// Beside them a program that does nothing, for pods to exec the client in, and one
		// that asks for whatever it is told.
		for program, source := range map[string]string{"pause": "./pause", "ask": "./node/ask"} {
			if err := cluster.BuildImage(dir, "azidentity", program, "..", source); err != nil {
				return nil, err
			}
		}
		// An SDK that asks where the environment says, which Go's does not.
		if err := cluster.CopyImage(dir, "jssdk", "tools/jssdk", ".cache/cluster-jssdk"); err != nil {
			return nil, err
		}
		if err := cluster.BuildImage(dir, "jssdk", "pause", "..", "./pause"); err != nil {
			return nil, err
		}
		if err := cluster.Build(filepath.Join(dir, "imds-migrate"), "../../..", "./cmd/imds-migrate"); err != nil {
			return nil, err
		}
		return []string{migrateVar + "=" + filepath.Join(dir, "imds-migrate")}, cluster.BuildHelm()
	}}
	os.Exit(cluster.RunTests("node", m, config, func(ctx context.Context, c *cluster.Cluster) error {
		running = c
		return errors.Join(
			c.InstallChart(ctx, "imds-oidc-proxy", "webhook.namespaceSelector[0].key="+oldStyleLabel, "webhook.namespaceSelector[0].operator=DoesNotExist"),
			c.InstallChart(ctx, "old-style", "fullnameOverride=old-style", "replicas=1", "nativeSidecar=off",
				"webhook.namespaceSelector[0].key="+oldStyleLabel, "webhook.namespaceSelector[0].operator=In", "webhook.namespaceSelector[0].values[0]=yes"))
	}))
}

var (
	errNoPod       = errors.New("there is no pod yet")
	errNotComplete = errors.New("the Job has not completed")
)
