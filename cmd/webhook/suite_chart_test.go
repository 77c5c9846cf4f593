package main

import (
	"io"
	"os"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"
)

// rendered are files with the output of Helm. test/deploy/chart checks that they are up to date.
var rendered = []string{
	"../../deploy/webhook/webhook.yaml",
	"../../test/deploy/chart/testdata/least.yaml",
	"../../test/deploy/chart/testdata/cert-manager.yaml",
	"../../test/deploy/chart/testdata/mounted.yaml",
	"../../test/deploy/chart/testdata/everything.yaml",
}

// chartConfig parses the arguments of the webhook in a rendered chart.
func chartConfig(t *testing.T, file string) config {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var deployment appsv1.Deployment
	for _, document := range strings.Split(string(text), "\n---\n") {
		if strings.Contains(document, "\nkind: Deployment\n") {
			if err := yaml.UnmarshalStrict([]byte(document), &deployment); err != nil {
				t.Fatal(err)
			}
		}
	}
	container := deployment.Spec.Template.Spec.Containers[0]
	var args []string
	for _, arg := range container.Args {
		args = append(args, strings.ReplaceAll(arg, "$(POD_NAMESPACE)", deployment.Namespace))
	}
	cfg, err := parseConfig(args, none, io.Discard)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return cfg
}

// TestChartArguments checks that this program accepts the chart's arguments, and the values of
// some.
func TestChartArguments(t *testing.T) {
	for _, file := range rendered {
		cfg := chartConfig(t, file)
		if cfg.certificates.dir != "/certs" || cfg.address != ":9443" || cfg.healthAddress != ":8081" || cfg.metricsAddress != ":8080" {
			t.Errorf("%s: the chart's mount and ports differ from %+v", file, cfg)
		}
	}
	all := chartConfig(t, "../../test/deploy/chart/testdata/everything.yaml")
	if all.inject.TenantID != testTenantID || all.inject.AuthorityHost != "https://login.example.test/" || all.inject.LogLevel != "debug" ||
		all.inject.TokenEndpoint.ClusterTrustBundleLabels.MatchLabels["use"] != "identity-binding" || all.inject.ProxyResources.Limits.Memory().String() != "96Mi" ||
		all.nativeSidecar != sidecarOn || all.tlsMinVersion != "1.2" || all.certificates.secret != "hook-cert" || all.certificates.configuration != "hook" {
		t.Errorf("got %+v, %+v", all, all.inject)
	}
	mounted := chartConfig(t, "../../test/deploy/chart/testdata/mounted.yaml")
	if mounted.certificates.mode != certMounted || mounted.nativeSidecar != sidecarOff {
		t.Errorf("mounted: got %+v", mounted)
	}
}
