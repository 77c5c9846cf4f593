// Package apiserver tests with a real API server whether it accepts this project's
// manifests and injected pods. There is no node: the tests create pods and read them
// back, but the pods do not run.
package apiserver

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"imds-oidc-proxy/test/cluster"
)

const (
	repository = "../../.."

	// programsVar is the environment variable with the directory of the programs.
	programsVar = "APISERVER_TEST_PROGRAMS"

	// release is the Helm release and the namespace of the shared webhook, which uses
	// firstPort and the next two ports. Tests that start another webhook use later ports.
	release   = "imds-oidc-proxy"
	firstPort = 9443

	// registry is the chart's value images.registry. No image is pulled.
	registry = "registry.example.test/team"

	tenantID = "11111111-2222-4333-8444-555555555555"
	clientID = "66666666-7777-4888-9999-aaaaaaaaaaaa"
)

// programs are the programs under test, by their names in cmd.
var programs = []string{"webhook", "imds-migrate", "proxy"}

// program returns the path of a program that TestMain built.
func program(name string) string { return filepath.Join(os.Getenv(programsVar), name) }

var (
	// running is the cluster. All tests share it, and each has its own namespace.
	running *cluster.Cluster
	// webhook is the shared webhook, with the chart's defaults. It serves all namespaces
	// without ownWebhookLabel.
	webhook *cluster.Process
)

func TestMain(m *testing.M) {
	config := cluster.Config{Prepare: func(dir string) ([]string, error) {
		for _, program := range programs {
			if err := cluster.Build(filepath.Join(dir, program), repository, "./cmd/"+program); err != nil {
				return nil, err
			}
		}
		return []string{programsVar + "=" + dir}, cluster.BuildHelm()
	}}
	os.Exit(cluster.RunTests("apiserver", m, config, func(ctx context.Context, c *cluster.Cluster) (err error) {
		running = c
		webhook, err = startWebhook(ctx, "", firstPort)
		return err
	}))
}

// ownWebhookLabel is a label of namespaces whose pods the shared webhook does not get. Its
// value is the name of their webhook, or "none".
const ownWebhookLabel = "test/webhook"

// startWebhook starts a webhook with values of the chart. If own is empty, it is the shared
// webhook. Otherwise own is the name of the webhook's objects and the value of
// ownWebhookLabel in its namespaces.
func startWebhook(ctx context.Context, own string, port int, values ...string) (*cluster.Process, error) {
	name := release
	values = append(values, "images.registry="+registry, "tenantID="+tenantID, "drain=0s", "webhook.namespaceSelector[0].key="+ownWebhookLabel)
	if own == "" {
		values = append(values, "webhook.namespaceSelector[0].operator=DoesNotExist")
	} else {
		name = own
		values = append(values, "fullnameOverride="+own, "webhook.namespaceSelector[0].operator=In", "webhook.namespaceSelector[0].values[0]="+own)
	}
	return running.StartWebhook(ctx, program("webhook"), name, port, values...)
}
