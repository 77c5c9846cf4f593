package manifests

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/pod-security-admission/api"
)

// charts are files with the output of Helm. test/deploy/chart checks that they are up to date.
var charts = map[string]string{
	"manifest":     deployDir + "/webhook/webhook.yaml",
	"least":        repository + "/test/deploy/chart/testdata/least.yaml",
	"cert-manager": repository + "/test/deploy/chart/testdata/cert-manager.yaml",
	"mounted":      repository + "/test/deploy/chart/testdata/mounted.yaml",
	"everything":   repository + "/test/deploy/chart/testdata/everything.yaml",
}

// installed has the objects of a rendered chart that the tests check.
type installed struct {
	deployment    *appsv1.Deployment
	configuration *admissionv1.MutatingWebhookConfiguration
	service       *corev1.Service
	secret        *corev1.Secret
	budget        *policyv1.PodDisruptionBudget
	rules         map[string][]rbacv1.PolicyRule // of the webhook, by kind of role
	plugin        *appsv1.DaemonSet              // of the CNI plugin; nil: there is none
	pluginRules   []rbacv1.PolicyRule
	namespaces    []string // of all objects with a namespace
}

// install decodes a rendered chart strictly.
func install(t *testing.T, name string) installed {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(charts[name]))
	if err != nil {
		t.Fatal(err)
	}
	i := installed{rules: make(map[string][]rbacv1.PolicyRule)}
	for _, document := range documents("\n" + string(text)) {
		if !strings.Contains(document, "\nkind:") {
			continue // comments
		}
		object := decode(t, document)
		switch o := object.(type) {
		case *appsv1.Deployment:
			i.deployment = o
		case *admissionv1.MutatingWebhookConfiguration:
			i.configuration = o
		case *corev1.Service:
			i.service = o
		case *corev1.Secret:
			i.secret = o
		case *policyv1.PodDisruptionBudget:
			i.budget = o
		case *appsv1.DaemonSet:
			i.plugin = o
		case *rbacv1.ClusterRole:
			if strings.HasSuffix(o.Name, "-cni") {
				i.pluginRules = o.Rules
			} else {
				i.rules["ClusterRole"] = o.Rules
			}
		case *rbacv1.Role:
			i.rules["Role"] = o.Rules
		}
		// What helm test creates is in another namespace, since pods of this one are not injected.
		if o, ok := object.(metav1.Object); ok && o.GetNamespace() != "" && o.GetAnnotations()["helm.sh/hook"] == "" {
			i.namespaces = append(i.namespaces, o.GetNamespace())
		}
	}
	if i.deployment == nil || i.configuration == nil || i.service == nil || i.budget == nil {
		t.Fatalf("%s: an object is missing: %+v", name, i)
	}
	return i
}

// TestWebhookPod checks that the webhook's pod passes the level restricted, and that labels and ports of
// Service and pod match.
func TestWebhookPod(t *testing.T) {
	for name := range charts {
		i := install(t, name)
		pod := i.deployment.Spec.Template
		if got := refusals(t, api.LevelRestricted, pod); len(got) != 0 {
			t.Errorf("%s: restricted refuses for %q", name, got)
		}
		checkHardened(t, &pod.Spec.Containers[0])
		for label, value := range i.service.Spec.Selector {
			if pod.Labels[label] != value || i.deployment.Spec.Selector.MatchLabels[label] != value || i.budget.Spec.Selector.MatchLabels[label] != value {
				t.Errorf("%s: label %s=%s is missing in an object", name, label, value)
			}
		}
		port := i.service.Spec.Ports[0]
		if !slices.ContainsFunc(pod.Spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == port.TargetPort.StrVal }) {
			t.Errorf("%s: the pod has no port %s, the Service's target", name, port.TargetPort.StrVal)
		}
		reference := i.configuration.Webhooks[0].ClientConfig.Service
		if reference.Name != i.service.Name || reference.Namespace != i.service.Namespace || *reference.Port != port.Port || *reference.Path != "/mutate-v1-pod" {
			t.Errorf("%s: the API server sends requests to %+v", name, reference)
		}
		if got := slices.Compact(i.namespaces); len(got) != 1 {
			t.Errorf("%s: objects in namespaces %q", name, got)
		}
		if *i.deployment.Spec.Replicas < 2 {
			t.Errorf("%s: %d replicas", name, *i.deployment.Spec.Replicas)
		}
	}
}

// TestPluginPod checks that the DaemonSet of the CNI plugin exists only on request, and has no more
// privileges than it needs: two directories of the node, one capability, and the permission to
// remove a taint.
func TestPluginPod(t *testing.T) {
	for name := range charts {
		i := install(t, name)
		if (i.plugin != nil) != (name == "everything") {
			t.Errorf("%s: has a DaemonSet: %t", name, i.plugin != nil)
		}
		if i.plugin == nil && i.pluginRules != nil {
			t.Errorf("%s: has permissions for the DaemonSet: %+v", name, i.pluginRules)
		}
	}
	i := install(t, "everything")
	pod := i.plugin.Spec.Template
	container := &pod.Spec.Containers[0]
	checkHardened(t, container)
	if s := container.SecurityContext; !slices.Equal(s.Capabilities.Add, []corev1.Capability{"DAC_OVERRIDE"}) || s.Privileged != nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("security context %v", s)
	}
	var paths []string
	for _, v := range pod.Spec.Volumes {
		paths = append(paths, v.HostPath.Path)
	}
	if want := []string{"/var/lib/cni/bin", "/var/lib/cni/net.d"}; !slices.Equal(paths, want) {
		t.Errorf("directories of the node %q, want %q", paths, want)
	}
	if len(i.pluginRules) != 1 || !slices.Equal(i.pluginRules[0].Resources, []string{"nodes"}) || !slices.Equal(i.pluginRules[0].Verbs, []string{"get", "patch"}) {
		t.Errorf("permissions %+v", i.pluginRules)
	}
	for label, value := range i.plugin.Spec.Selector.MatchLabels {
		if pod.Labels[label] != value {
			t.Errorf("the DaemonSet's pods lack the label %s=%s", label, value)
		}
	}
	for label, value := range i.service.Spec.Selector {
		if pod.Labels[label] != value {
			return
		}
	}
	t.Error("the webhook's Service selects the DaemonSet's pods")
}

// TestWebhookConfiguration checks for which pods the webhook is called, and the failure policy.
func TestWebhookConfiguration(t *testing.T) {
	for name := range charts {
		i := install(t, name)
		hook := i.configuration.Webhooks[0]
		if got := hook.ObjectSelector.MatchLabels["azure.workload.identity/use"]; got != "true" {
			t.Errorf("%s: pods without the label depend on the webhook: %+v", name, hook.ObjectSelector)
		}
		first := hook.NamespaceSelector.MatchExpressions[0]
		if first.Key != "kubernetes.io/metadata.name" || first.Operator != "NotIn" ||
			!slices.Contains(first.Values, "kube-system") || !slices.Contains(first.Values, i.deployment.Namespace) {
			t.Errorf("%s: the cluster cannot start without the webhook, or the webhook without itself: %+v", name, first)
		}
		if *hook.SideEffects != admissionv1.SideEffectClassNone || !slices.Equal(hook.AdmissionReviewVersions, []string{"v1"}) {
			t.Errorf("%s: side effects %v, versions %q", name, *hook.SideEffects, hook.AdmissionReviewVersions)
		}
		if len(hook.Rules) != 1 || !slices.Equal(hook.Rules[0].Resources, []string{"pods"}) || !slices.Equal(hook.Rules[0].Operations, []admissionv1.OperationType{"CREATE"}) {
			t.Errorf("%s: rules %+v", name, hook.Rules)
		}
	}
	hook := install(t, "least").configuration.Webhooks[0]
	if *hook.FailurePolicy != admissionv1.Fail || *hook.ReinvocationPolicy != admissionv1.IfNeededReinvocationPolicy || *hook.TimeoutSeconds != 10 {
		t.Errorf("by default: %v, %v, %d s", *hook.FailurePolicy, *hook.ReinvocationPolicy, *hook.TimeoutSeconds)
	}
}

// TestWebhookPermissions checks that the webhook may read service accounts, and with a rotated
// certificate also its own Secret and configuration by name, and nothing else.
func TestWebhookPermissions(t *testing.T) {
	for name := range charts {
		i := install(t, name)
		rotated := i.secret != nil
		if want := name != "cert-manager" && name != "mounted"; rotated != want {
			t.Errorf("%s: has a Secret: %v, want %v", name, rotated, want)
		}
		var resources []string
		for _, rules := range i.rules {
			for _, rule := range rules {
				resources = append(resources, rule.Resources...)
				checkRule(t, name, i, rule)
			}
		}
		slices.Sort(resources)
		want := []string{"serviceaccounts"}
		if rotated {
			want = []string{"mutatingwebhookconfigurations", "secrets", "serviceaccounts"}
		}
		if !slices.Equal(resources, want) {
			t.Errorf("%s: has permissions for %q, want %q", name, resources, want)
		}
	}
}

func checkRule(t *testing.T, name string, i installed, rule rbacv1.PolicyRule) {
	t.Helper()
	verbs, names := []string{"get", "list", "watch"}, []string(nil)
	switch rule.Resources[0] {
	case "secrets":
		verbs, names = append(verbs, "update"), []string{i.secret.Name}
	case "mutatingwebhookconfigurations":
		verbs, names = append(verbs, "update"), []string{i.configuration.Name}
	}
	if !slices.Equal(rule.Verbs, verbs) || !slices.Equal(rule.ResourceNames, names) {
		t.Errorf("%s: rule %+v, want verbs %q on %q", name, rule, verbs, names)
	}
}
