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
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// promtool runs Prometheus' promtool: the one of the system, or the one that `make test`
// has unpacked.
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

// TestAlerts: the rules are valid, and each alert fires when it should and only then.
func TestAlerts(t *testing.T) {
	rules, _, _ := monitoring(t)
	dir := t.TempDir()
	writeYAML(t, filepath.Join(dir, "rules.yaml"), rules.Spec)
	writeYAML(t, filepath.Join(dir, "removal-rules.yaml"), monitoringv1.PrometheusRuleSpec{Groups: []monitoringv1.RuleGroup{removal(t, rules)}})
	tests := ""
	for _, file := range []string{"alerts.yaml", "removal.yaml"} {
		tests += copyTestdata(t, dir, file)
	}
	promtool(t, dir, "check", "rules", "rules.yaml")
	promtool(t, dir, "test", "rules", "alerts.yaml", "removal.yaml")

	for _, group := range rules.Spec.Groups {
		for _, rule := range group.Rules {
			if rule.Alert != "" && !strings.Contains(tests, "alertname: "+rule.Alert+"\n") {
				t.Errorf("%s has no test in testdata", rule.Alert)
			}
		}
	}
}

// removal returns the group whose only rule says that a sidecar is no longer needed.
func removal(t *testing.T, rules *monitoringv1.PrometheusRule) monitoringv1.RuleGroup {
	t.Helper()
	const position = 2 // in the patch that prometheusrule.yaml and docs/metrics.md suggest
	if len(rules.Spec.Groups) > position {
		if group := rules.Spec.Groups[position]; group.Name == "imds-oidc-proxy.removal" && len(group.Rules) == 1 {
			return group
		}
	}
	t.Fatalf("the group imds-oidc-proxy.removal, of one rule, must be at position %d", position)
	return monitoringv1.RuleGroup{}
}

// copyTestdata copies a file to dir and returns its text.
func copyTestdata(t *testing.T, dir, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, file), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return string(text)
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

// TestMonitorFindsTheSidecar: label and port of the PodMonitor are those of the component.
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

// TestNetworkPolicy: the sample selects the pods with a sidecar, and allows only selected
// pods to connect to the admin port.
func TestNetworkPolicy(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(deployDir, "monitoring", "networkpolicy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	sample := decode(t, string(text)).(*networkingv1.NetworkPolicy)
	v := load(t, "deployment")
	selected, err := metav1.LabelSelectorAsSelector(&sample.Spec.PodSelector)
	if err != nil || selected.Empty() || !selected.Matches(labels.Set(v.pod.Labels)) {
		t.Errorf("it selects %s (%v), not the pod's labels %v", selected, err, v.pod.Labels)
	}
	if !slices.Equal(sample.Spec.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}) {
		t.Errorf("policy types %v", sample.Spec.PolicyTypes)
	}
	admin := v.container(sidecarName).Ports[0]
	reached := false
	for _, rule := range sample.Spec.Ingress {
		if len(rule.Ports) == 0 {
			t.Error("a rule for all ports allows every pod to connect to the admin address")
		}
		for _, port := range rule.Ports {
			if port.Port.String() != admin.Name && port.Port.IntVal != admin.ContainerPort {
				continue
			}
			reached = true
			if len(rule.From) != 1 || rule.From[0].NamespaceSelector == nil || rule.From[0].PodSelector == nil {
				t.Errorf("from %+v, want pods by label in a namespace by label", rule.From)
			}
		}
	}
	if !reached {
		t.Errorf("no rule for the port %s", admin.Name)
	}
}

// panel is the part of Grafana's format that the test reads.
type panel struct {
	ID      int
	Title   string
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr, RefID string }
	// Interval is the minimum step. With a step below the scrape interval, Grafana's
	// $__rate_interval would contain one sample, which has no rate.
	Interval string
}

// TestDashboard: the dashboard is valid JSON with valid PromQL, and no panels overlap.
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
		t.Error("the dashboard has no name or no panels")
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
					t.Fatalf("panel %q overlaps %q or the edge", p.Title, other)
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

// TestMetricsExist: alerts and dashboard use only metrics and label values that the proxy
// has, and every metric is used.
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
	tests := copyTestdata(t, t.TempDir(), "alerts.yaml")
	found := 0
	for _, use := range labelUses(text + tests) {
		found++
		if !slices.ContainsFunc(strings.Split(page, "\n"), use.in) {
			t.Errorf("imds_oidc_proxy_%s is used with %s=%q, and the proxy has no such series", use.metric, use.label, use.value)
		}
	}
	if found < 20 {
		t.Errorf("found %d uses of labels, which shows nothing", found)
	}
}

// labelUse is a label value that a rule, a panel or a test of a rule selects.
type labelUse struct{ metric, label, value string }

// in reports whether a line of a scrape is of such a series.
func (u labelUse) in(line string) bool {
	return strings.HasPrefix(line, "imds_oidc_proxy_"+u.metric+"{") && strings.Contains(line, u.label+`="`+u.value+`"`)
}

// The labels whose values are constants that are in every scrape, or that the requests of
// scrape cause. The values of other labels are codes, versions and names.
var (
	selector     = regexp.MustCompile(`imds_oidc_proxy_([a-z_]+)\{([^}]*)\}`)
	labelMatcher = regexp.MustCompile(`\b(result|source|handler|reason)(?:=~|!~|!=|=)"([a-z_|]+)"`)
)

func labelUses(text string) []labelUse {
	var uses []labelUse
	for _, s := range selector.FindAllStringSubmatch(text, -1) {
		for _, m := range labelMatcher.FindAllStringSubmatch(s[2], -1) {
			for value := range strings.SplitSeq(m[2], "|") {
				uses = append(uses, labelUse{s[1], m[1], value})
			}
		}
	}
	return uses
}
