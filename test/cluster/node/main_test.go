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

// clientModule is an application with Microsoft's SDK for Go and no configuration for the
// proxy. It has the SDK's first version with credentials, which requests tokens only from
// IMDS.
const clientModule = "../../e2e/clients/azidentity"

// olderModule has adal, the SDK before azidentity, which sends different requests.
const olderModule = "../../compat/drivers/go"

// webhookLabel is a label of namespaces that selects the webhook for their pods: the
// webhook for clusters without native sidecars if the value is "no-native-sidecars", the
// webhook of TestCNI if it is "cni", that of TestRelease if it is "released", and no webhook if it is "none". Without the label it is the webhook with the chart's defaults.
const webhookLabel = "test/webhook"

// nextPlugin is the name of the image with another version of the CNI plugin.
const nextPlugin = "imds-cni-next"

// migrateVar is the environment variable with the path of imds-migrate.
const migrateVar = "NODE_TEST_IMDS_MIGRATE"

// releaseVar is the environment variable with the directory of the release.
const releaseVar = "NODE_TEST_RELEASE"

// running is the cluster. All tests share it, and each has its own namespace.
var running *cluster.Cluster

func TestMain(m *testing.M) {
	config := cluster.Config{Node: true, Prepare: func(dir string) ([]string, error) {
		if err := cluster.BuildImage(dir, "azidentity", "azidentity", clientModule, "-modfile=v1.0.0.mod", "."); err != nil {
			return nil, err
		}
		if err := cluster.BuildImage(dir, "azidentity", "adal", olderModule, "-modfile=versions/adal-0.9.24.mod", "./adal"); err != nil {
			return nil, err
		}
		// pause keeps a container running, so that tests can run the client in it. ask
		// sends a request for any path.
		for program, source := range map[string]string{"pause": "./pause", "ask": "./node/ask"} {
			if err := cluster.BuildImage(dir, "azidentity", program, "..", source); err != nil {
				return nil, err
			}
		}
		// Unlike the SDK for Go, the SDK for JavaScript uses the environment variable
		// AZURE_POD_IDENTITY_AUTHORITY_HOST. All three use those of App Service.
		for _, name := range []string{"jssdk", "pysdk"} {
			if err := cluster.CopyImage(dir, name, "tools/"+name, ".cache/cluster-"+name); err != nil {
				return nil, err
			}
			if err := cluster.BuildImage(dir, name, "pause", "..", "./pause"); err != nil {
				return nil, err
			}
		}
		// One client in two images, whose SDK is upgraded from one to the other, and the daemon of
		// aad-pod-identity, which only writes a log: the test answers in its place.
		for image, build := range map[string][]string{oldSDK: {"-modfile=v1.0.0.mod", "."}, newSDK: {"./workload"}} {
			if err := cluster.BuildImage(dir, image, "client", clientModule, build...); err != nil {
				return nil, err
			}
			if err := cluster.BuildImage(dir, image, "pause", "..", "./pause"); err != nil {
				return nil, err
			}
		}
		if err := cluster.BuildImage(dir, "nmi", "nmi", "..", "./node/nmi"); err != nil {
			return nil, err
		}
		// Another version of the CNI plugin, for upgrades.
		if err := cluster.BuildImage(dir, nextPlugin, nextPlugin, "../../..", "-ldflags=-X main.version=next", "./cmd/imds-cni"); err != nil {
			return nil, err
		}
		if err := cluster.Build(filepath.Join(dir, "imds-migrate"), "../../..", "./cmd/imds-migrate"); err != nil {
			return nil, err
		}
		release := filepath.Join(dir, "release")
		if err := cluster.BuildRelease(release); err != nil {
			return nil, err
		}
		return []string{migrateVar + "=" + filepath.Join(dir, "imds-migrate"), releaseVar + "=" + release}, cluster.BuildHelm()
	}}
	os.Exit(cluster.RunTests("node", m, config, func(ctx context.Context, c *cluster.Cluster) error {
		running = c
		return errors.Join(
			c.InstallChart(ctx, "imds-oidc-proxy", "webhook.namespaceSelector[0].key="+webhookLabel, "webhook.namespaceSelector[0].operator=DoesNotExist"),
			c.InstallChart(ctx, "no-native-sidecars", "fullnameOverride=no-native-sidecars", "replicas=1", "nativeSidecar=off",
				"webhook.namespaceSelector[0].key="+webhookLabel, "webhook.namespaceSelector[0].operator=In", "webhook.namespaceSelector[0].values[0]=no-native-sidecars"))
	}))
}

var (
	errNoPod       = errors.New("the pod has not been created yet")
	errNotComplete = errors.New("the Job has not completed yet")
)
