package manifests

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// promtool runs Prometheus' own tool, from the system or from where `make test` has
// unpacked it.
func promtool(t *testing.T, dir string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		if path, err = filepath.Abs(repository + "/.cache/prometheus/usr/bin/promtool"); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func monitoring(t *testing.T) (rules *monitoringv1.PrometheusRule, monitor *monitoringv1.PodMonitor, dashboard string) {
	t.Helper()
	for _, document := range documents(render(t, "monitoring")) {
		switch o := decode(t, document).(type) {
		case *monitoringv1.PrometheusRule:
			rules = o
		case *monitoringv1.PodMonitor:
			monitor = o
		case *corev1.ConfigMap:
			dashboard = o.Data["imds-oidc-proxy.json"]
		}
	}
	if rules == nil || monitor == nil || dashboard == "" {
		t.Fatal("deploy/monitoring lacks rules, a monitor or a dashboard")
	}
	return rules, monitor, dashboard
}

// TestAlerts: the rules are valid, and fire when they should and only then.
func TestAlerts(t *testing.T) {
	rules, _, _ := monitoring(t)
	dir := t.TempDir()
	writeYAML(t, filepath.Join(dir, "rules.yaml"), rules.Spec)
	tests, err := os.ReadFile("testdata/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "alerts.yaml"), tests, 0o644); err != nil {
		t.Fatal(err)
	}
	promtool(t, dir, "check", "rules", "rules.yaml")
	promtool(t, dir, "test", "rules", "alerts.yaml")

	for _, group := range rules.Spec.Groups {
		for _, rule := range group.Rules {
			if rule.Alert != "" && !strings.Contains(string(tests), "alertname: "+rule.Alert+"\n") {
				t.Errorf("%s has no test in testdata/alerts.yaml", rule.Alert)
			}
		}
	}
}

func writeYAML(t *testing.T, file string, value any) {
	t.Helper()
	text, err := yaml.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestMonitorFindsTheSidecar: label and port are the ones that the component gives.
func TestMonitorFindsTheSidecar(t *testing.T) {
	_, monitor, _ := monitoring(t)
	v := load(t, "deployment")
	for label, want := range monitor.Spec.Selector.MatchLabels {
		if got := v.pod.Labels[label]; got != want {
			t.Errorf("the pod has %s=%q, the monitor looks for %q", label, got, want)
		}
	}
	port := monitor.Spec.PodMetricsEndpoints[0].Port
	if !slices.ContainsFunc(v.container(sidecarName).Ports, func(p corev1.ContainerPort) bool { return p.Name == *port }) {
		t.Errorf("the proxy has no port named %q", *port)
	}
}

// panel is what the test reads of Grafana's format.
type panel struct {
	ID      int
	Title   string
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr, RefID string }
	// Interval is the least step. Below the interval of the scrapes, Grafana's own
	// $__rate_interval holds one sample, and a rate of it is nothing.
	Interval string
}

// TestDashboard: valid JSON, valid PromQL, and a place of its own for each panel.
func TestDashboard(t *testing.T) {
	_, _, text := monitoring(t)
	var dashboard struct {
		UID, Title string
		Panels     []panel
	}
	if err := json.Unmarshal([]byte(text), &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.UID == "" || dashboard.Title == "" || len(dashboard.Panels) == 0 {
		t.Error("a dashboard without name or panels")
	}
	var rules []map[string]string
	taken := map[[2]int]string{}
	for i, p := range dashboard.Panels {
		if p.ID != i+1 || p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %d (%q): id %d, %d targets", i+1, p.Title, p.ID, len(p.Targets))
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q lies over %q or the edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for _, target := range p.Targets {
			if strings.Contains(target.Expr, "$__rate_interval") && p.Interval != "1m" {
				t.Errorf("panel %q: interval %q, want the 1m of the PodMonitor", p.Title, p.Interval)
			}
			rules = append(rules, map[string]string{"record": fmt.Sprintf("panel%d_%s", p.ID, target.RefID), "expr": inPrometheus(target.Expr)})
		}
	}
	dir := t.TempDir()
	writeYAML(t, filepath.Join(dir, "panels.yaml"), map[string]any{"groups": []any{map[string]any{"name": "panels", "rules": rules}}})
	promtool(t, dir, "check", "rules", "panels.yaml")
}

// inPrometheus replaces the variables of Grafana.
func inPrometheus(expr string) string {
	return strings.NewReplacer("$__rate_interval", "5m", "$namespace", ".*", "$pod", ".*").Replace(expr)
}

// TestMetricsExist: alerts and dashboard use only metrics that the proxy has, with
// values of labels that it gives, and leave no metric out.
func TestMetricsExist(t *testing.T) {
	rules, _, dashboard := monitoring(t)
	alerts, err := yaml.Marshal(rules.Spec)
	if err != nil {
		t.Fatal(err)
	}
	page := scrape(t)
	metrics := []string{"soonest_token_expiry_seconds"} // shown once there is a token
	for _, match := range regexp.MustCompile(`(?m)^# TYPE imds_oidc_proxy_([a-z_]+) `).FindAllStringSubmatch(page, -1) {
		metrics = append(metrics, match[1])
	}
	recorded := regexp.MustCompile(`[a-z_]+:imds_oidc_proxy_[a-z_0-9:]+`) // by the rules themselves
	text := recorded.ReplaceAllString(string(alerts)+strings.ReplaceAll(dashboard, `\"`, `"`), "")

	used := map[string]bool{}
	for _, match := range regexp.MustCompile(`imds_oidc_proxy_([a-z_]+)`).FindAllStringSubmatch(text, -1) {
		name := strings.TrimSuffix(match[1], "_bucket")
		used[name] = true
		if !slices.Contains(metrics, name) {
			t.Errorf("imds_oidc_proxy_%s is used, and is no metric of the proxy", name)
		}
	}
	for _, name := range metrics {
		if !used[name] {
			t.Errorf("imds_oidc_proxy_%s: neither an alert nor the dashboard uses it", name)
		}
	}
	for _, matcher := range regexp.MustCompile(`\b(?:result|source|handler)="[a-z_]+"`).FindAllString(text, -1) {
		if !strings.Contains(page, matcher) {
			t.Errorf("no series of the proxy has %s", matcher)
		}
	}
}
