package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/inject"
)

// rendered are files with the output of Helm. test/deploy/chart checks that they are up to date.
var rendered = []string{
	"../../deploy/webhook/webhook.yaml",
	"../../test/deploy/chart/testdata/least.yaml",
	"../../test/deploy/chart/testdata/cert-manager.yaml",
	"../../test/deploy/chart/testdata/mounted.yaml",
	"../../test/deploy/chart/testdata/everything.yaml",
}

// chartConfig parses the arguments of the webhook in a rendered chart, and checks that they listen
// at the ports of the container and use its mount.
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
		// As the kubelet expands them.
		args = append(args, strings.NewReplacer("$(POD_NAMESPACE)", deployment.Namespace, "$$(", "$(").Replace(arg))
	}
	cfg, err := parseConfig(args, none, io.Discard)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	for name, address := range map[string]string{"webhook": cfg.address, "health": cfg.healthAddress, "metrics": cfg.metricsAddress} {
		i := slices.IndexFunc(container.Ports, func(p corev1.ContainerPort) bool { return p.Name == name })
		if i < 0 || address != fmt.Sprintf(":%d", container.Ports[i].ContainerPort) {
			t.Errorf("%s: the address for %s is %s, the ports are %v", file, name, address, container.Ports)
		}
	}
	if !slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == cfg.certificates.dir }) {
		t.Errorf("%s: nothing is mounted at %s", file, cfg.certificates.dir)
	}
	return cfg
}

// TestChartArguments checks that this program accepts the chart's arguments, and the values of
// some.
func TestChartArguments(t *testing.T) {
	for _, file := range rendered {
		chartConfig(t, file)
	}
	all := chartConfig(t, "../../test/deploy/chart/testdata/everything.yaml")
	if all.inject.TenantID != testTenantID || all.inject.AuthorityHost != "https://login.example.test/" || all.inject.LogLevel != "debug" ||
		all.inject.TokenEndpoint.ClusterTrustBundleLabels.MatchLabels["use"] != "identity-binding" || all.inject.ProxyResources.Limits.Memory().String() != "96Mi" ||
		all.nativeSidecar != sidecarOn || all.tlsMinVersion != "1.2" || all.certificates.secret != "hook-cert" || all.certificates.configuration != "hook" ||
		all.address != ":10250" || all.inject.HTTPSProxy != "http://proxy.example.test:3128" || all.inject.NoProxy != ".example.test,10.0.0.0/8" ||
		all.inject.CAConfigMap != (inject.ConfigMapKey{Name: "corporate-ca", Key: "bundle.pem"}) || len(all.inject.ProxyEnv) != 2 || all.inject.ProxyEnv[0].Value != "$(NOT_EXPANDED)" {
		t.Errorf("got %+v, %+v", all, all.inject)
	}
	mounted := chartConfig(t, "../../test/deploy/chart/testdata/mounted.yaml")
	if mounted.certificates.mode != certMounted || mounted.nativeSidecar != sidecarOff {
		t.Errorf("mounted: got %+v", mounted)
	}
}
