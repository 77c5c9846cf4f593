package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestChartArguments: this program accepts the arguments of the chart's DaemonSet, whose mounts
// and probes are those of the arguments. test/deploy/chart checks that the file is up to date.
func TestChartArguments(t *testing.T) {
	text, err := os.ReadFile("../../test/deploy/chart/testdata/everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var set appsv1.DaemonSet
	for _, document := range strings.Split(string(text), "\n---\n") {
		if strings.Contains(document, "\nkind: DaemonSet\n") {
			if err := yaml.UnmarshalStrict([]byte(document), &set); err != nil {
				t.Fatal(err)
			}
		}
	}
	pod := set.Spec.Template.Spec
	container := pod.Containers[0]
	var args []string
	for _, arg := range container.Args {
		args = append(args, strings.ReplaceAll(arg, "$(NODE_NAME)", "node-1")) // as the kubelet expands them
	}
	o, err := parse(args, func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	if o.uninstall || o.exempt.String() != exemptNone || o.taint != "example.test/cni-not-ready" || o.node != "node-1" {
		t.Errorf("got %+v", o)
	}
	for _, dir := range []string{o.binDir, o.confDir} {
		i := slices.IndexFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == dir })
		if i < 0 {
			t.Errorf("nothing is mounted at %s", dir)
			continue
		}
		j := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == container.VolumeMounts[i].Name })
		if path := pod.Volumes[j].HostPath.Path; path != dir {
			t.Errorf("%s of the node is mounted at %s", path, dir)
		}
	}
	for name, probe := range map[string]*corev1.Probe{"readiness": container.ReadinessProbe, "liveness": container.LivenessProbe} {
		if at := probe.HTTPGet.Host + ":" + probe.HTTPGet.Port.String(); at != o.healthAddress {
			t.Errorf("the %s probe asks at %s, the program listens at %s", name, at, o.healthAddress)
		}
	}
	if !pod.HostNetwork {
		t.Error("the DaemonSet has no hostNetwork: its pod could not start without the plugin")
	}
}
