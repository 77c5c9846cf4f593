package manifests

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// webhookMonitoring returns the monitoring of a rendered chart, or nil.
func webhookMonitoring(t *testing.T, name string) (rules *monitoringv1.PrometheusRule, monitor *monitoringv1.PodMonitor) {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(charts[name]))
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range documents("\n" + string(text)) {
		if !strings.Contains(document, "\nkind:") {
			continue // comments
		}
		switch o := decode(t, document).(type) {
		case *monitoringv1.PrometheusRule:
			rules = o
		case *monitoringv1.PodMonitor:
			monitor = o
		}
	}
	return rules, monitor
}

// TestWebhookMonitoring: the chart's PodMonitor selects the webhook's pods and their metrics, and
// there is no monitoring by default.
func TestWebhookMonitoring(t *testing.T) {
	if rules, monitor := webhookMonitoring(t, "least"); rules != nil || monitor != nil {
		t.Error("there is monitoring by default, which needs the Prometheus operator")
	}
	rules, monitor := webhookMonitoring(t, "everything")
	if rules == nil || monitor == nil {
		t.Fatal("there are no rules or no monitor")
	}
	pod := install(t, "everything").deployment.Spec.Template
	if len(monitor.Spec.Selector.MatchLabels) == 0 {
		t.Error("the monitor selects all pods")
	}
	for label, want := range monitor.Spec.Selector.MatchLabels {
		if got := pod.Labels[label]; got != want {
			t.Errorf("the pod has %s=%q, the monitor selects %q", label, got, want)
		}
	}
	port := *monitor.Spec.PodMetricsEndpoints[0].Port
	if !slices.ContainsFunc(pod.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == port }) {
		t.Errorf("the webhook has no port named %q", port)
	}
	for _, labels := range []map[string]string{rules.Labels, monitor.Labels} {
		if labels["release"] != "kube-prometheus-stack" {
			t.Errorf("labels %v lack those of monitoring.labels", labels)
		}
	}
}

// TestWebhookServiceMonitor: the chart's ServiceMonitor selects the webhook's Service, which has the
// port with the metrics.
func TestWebhookServiceMonitor(t *testing.T) {
	text, err := os.ReadFile(filepath.FromSlash(charts["cert-manager"]))
	if err != nil {
		t.Fatal(err)
	}
	var monitor *monitoringv1.ServiceMonitor
	var service *corev1.Service
	for _, document := range documents("\n" + string(text)) {
		if !strings.Contains(document, "\nkind:") {
			continue // comments
		}
		switch o := decode(t, document).(type) {
		case *monitoringv1.ServiceMonitor:
			monitor = o
		case *monitoringv1.PodMonitor:
			t.Error("there is a PodMonitor too")
		case *corev1.Service:
			service = o
		}
	}
	if monitor == nil || service == nil {
		t.Fatal("there is no monitor or no Service")
	}
	if len(monitor.Spec.Selector.MatchLabels) == 0 {
		t.Error("the monitor selects all Services")
	}
	for label, want := range monitor.Spec.Selector.MatchLabels {
		if got := service.Labels[label]; got != want {
			t.Errorf("the Service has %s=%q, the monitor selects %q", label, got, want)
		}
	}
	port := monitor.Spec.Endpoints[0].Port
	i := slices.IndexFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == port })
	if i < 0 {
		t.Fatalf("the Service has no port named %q", port)
	}
	container := install(t, "cert-manager").deployment.Spec.Template.Spec.Containers[0]
	if target := service.Spec.Ports[i].TargetPort.String(); !slices.ContainsFunc(container.Ports, func(p corev1.ContainerPort) bool { return p.Name == target }) {
		t.Errorf("the webhook has no port named %q", target)
	}
}

// TestWebhookAlerts: each alert of the chart fires when it should and only then.
func TestWebhookAlerts(t *testing.T) {
	rules, _ := webhookMonitoring(t, "everything")
	dir := t.TempDir()
	writeYAML(t, filepath.Join(dir, "webhook-rules.yaml"), rules.Spec)
	tests := copyTestdata(t, dir, "webhook-alerts.yaml") + copyTestdata(t, dir, "webhook-calls.yaml")
	promtool(t, dir, "check", "rules", "webhook-rules.yaml")
	promtool(t, dir, "test", "rules", "webhook-alerts.yaml", "webhook-calls.yaml")
	for _, rule := range rules.Spec.Groups[0].Rules {
		if !strings.Contains(tests, "alertname: "+rule.Alert+"\n") {
			t.Errorf("%s has no test in testdata", rule.Alert)
		}
	}
}

// TestWebhookMetrics: the alerts use only metrics and label values that docs/webhook.md has. A
// test of cmd/webhook compares that table with the program.
func TestWebhookMetrics(t *testing.T) {
	page, err := os.ReadFile(repository + "/docs/webhook.md")
	if err != nil {
		t.Fatal(err)
	}
	rules, _ := webhookMonitoring(t, "everything")
	text, err := yaml.Marshal(rules.Spec)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, match := range regexp.MustCompile(`(imds_oidc_proxy_webhook_[a-z_]+)(?:\{result="([a-z]+)"\})?`).FindAllStringSubmatch(string(text), -1) {
		found++
		_, row, documented := strings.Cut(string(page), "\n| `"+strings.TrimSuffix(match[1], "_bucket")+"` |")
		row, _, _ = strings.Cut(row, "\n")
		if !documented || match[2] != "" && !strings.Contains(row, "`"+match[2]+"`") {
			t.Errorf("docs/webhook.md does not have %s", match[0])
		}
	}
	if found < 6 {
		t.Errorf("found %d uses of metrics, want at least one for each alert", found)
	}
}
