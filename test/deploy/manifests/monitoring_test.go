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

// promtool runs Prometheus' promtool, from PATH or from the directory into which `make test` unpacks it.
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

// TestAlerts checks that the rules are valid, and that the alerts fire only when they should.
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

// TestMonitorFindsTheSidecar checks that the PodMonitor selects the label and the port of the pod.
func TestMonitorFindsTheSidecar(t *testing.T) {
	_, monitor, _ := monitoring(t)
	v := load(t, "deployment")
	for label, want := range monitor.Spec.Selector.MatchLabels {
		if got := v.pod.Labels[label]; got != want {
			t.Errorf("the pod has %s=%q, the monitor selects %q", label, got, want)
		}
	}
	port := monitor.Spec.PodMetricsEndpoints[0].Port
	if !slices.ContainsFunc(v.container(sidecarName).Ports, func(p corev1.ContainerPort) bool { return p.Name == *port }) {
		t.Errorf("the proxy has no port named %q", *port)
	}
}

// TestNetworkPolicy checks that the sample selects the pods with a sidecar, and allows only selected pods
// to connect to the admin port.
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
			t.Error("a rule for all ports allows all pods to connect to the admin port")
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

// panel has the fields of Grafana's format that the test reads.
type panel struct {
	ID      int
	Title   string
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr, RefID string }
	// Interval is the minimum step. If it is shorter than the scrape interval, $__rate_interval
	// contains one sample, and the rate is empty.
	Interval string
}

// TestDashboard checks that the dashboard is valid JSON with valid PromQL, and that panels do not overlap.
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

// TestMetricsExist checks that alerts and dashboard use all metrics of the proxy and no others, with label
// values that exist.
func TestMetricsExist(t *testing.T) {
	rules, _, dashboard := monitoring(t)
	alerts, err := yaml.Marshal(rules.Spec)
	if err != nil {
		t.Fatal(err)
	}
	page := scrape(t)
	metrics := []string{"soonest_token_expiry_seconds"} // exists after the first token
	for _, match := range regexp.MustCompile(`(?m)^# TYPE imds_oidc_proxy_([a-z_]+) `).FindAllStringSubmatch(page, -1) {
		metrics = append(metrics, match[1])
	}
	recorded := regexp.MustCompile(`[a-z_]+:imds_oidc_proxy_[a-z_0-9:]+`) // metrics of recording rules
	text := recorded.ReplaceAllString(string(alerts)+strings.ReplaceAll(dashboard, `\"`, `"`), "")

	used := map[string]bool{}
	for _, match := range regexp.MustCompile(`imds_oidc_proxy_([a-z_]+)`).FindAllStringSubmatch(text, -1) {
		name := strings.TrimSuffix(match[1], "_bucket")
		used[name] = true
		if !slices.Contains(metrics, name) {
			t.Errorf("imds_oidc_proxy_%s is used, but is not a metric of the proxy", name)
		}
	}
	for _, name := range metrics {
		if !used[name] {
			t.Errorf("imds_oidc_proxy_%s: neither an alert nor the dashboard uses it", name)
		}
	}
	tests, err := os.ReadFile("testdata/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, use := range labelUses(text + string(tests)) {
		found++
		if !slices.ContainsFunc(strings.Split(page, "\n"), use.in) {
			t.Errorf("imds_oidc_proxy_%s is used with %s=%q, but the proxy has no such series", use.metric, use.label, use.value)
		}
	}
	if found < 20 {
		t.Errorf("found only %d uses of labels, so this test is vacuous", found)
	}
}

// labelUse is a label value of a metric in a rule, a panel, or a test of a rule.
type labelUse struct{ metric, label, value string }

// in reports whether a line of a scrape is of this series.
func (u labelUse) in(line string) bool {
	return strings.HasPrefix(line, "imds_oidc_proxy_"+u.metric+"{") && strings.Contains(line, u.label+`="`+u.value+`"`)
}

// labelMatcher matches labels whose values exist from the start of the proxy, or after the requests of
// scrape. Other labels are codes, versions and names.
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
