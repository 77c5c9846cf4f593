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

	// programsVar tells the process inside where the programs are.
	programsVar = "APISERVER_TEST_PROGRAMS"

	// release is the webhook's, and its namespace. firstPort and the next two are its
	// own; tests that start another take later ones.
	release   = "imds-oidc-proxy"
	firstPort = 9443

	// registry is where the chart is told that images are. Nobody pulls them here.
	registry = "registry.example.test/team"

	tenantID = "11111111-2222-4333-8444-555555555555"
	clientID = "66666666-7777-4888-9999-aaaaaaaaaaaa"
)

// programs are what is under test.
var programs = []string{"webhook", "imds-migrate"}

// program is the path of one that was built.
func program(name string) string { return filepath.Join(os.Getenv(programsVar), name) }

var (
	// running is the cluster that all tests share, each in a namespace of its own.
	running *cluster.Cluster
	// webhook is the chart's as it comes, for all namespaces but those of a test that
	// starts another.
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

// ownWebhookLabel, on a namespace, says that a webhook other than the shared one is
// for its pods, and which.
const ownWebhookLabel = "test/webhook"

// startWebhook starts a webhook with its chart's values. Empty own: for namespaces
// without the label, else for those with that value, which names its objects too.
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
