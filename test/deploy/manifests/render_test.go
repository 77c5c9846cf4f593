// Package manifests tests what deploy/README.md says: every manifest can be decoded
// strictly with the API server's types, each pod complies with its Pod Security level,
// the programs accept the arguments and variables of the manifests, and the alerts
// fire when they should.
//
// It is in a Go module of its own, so that kustomize and the Pod Security evaluator,
// which only these tests need, are not in the main module.
package manifests

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const (
	repository = "../../.."
	deployDir  = repository + "/deploy"
)

// variants are the directories of deploy/ with a pod.
var variants = []string{"dev-pod", "deployment", "job", "sealed", "no-redirect"}

// rendered caches the results of render by directory. Each takes a third of a second.
var rendered sync.Map

// render renders a directory as `kubectl apply -k` does.
func render(t *testing.T, dir string) string {
	t.Helper()
	if text, ok := rendered.Load(dir); ok {
		return text.(string)
	}
	k := krusty.MakeKustomizer(krusty.MakeDefaultOptions())
	resources, err := k.Run(filesys.MakeFsOnDisk(), filepath.Join(deployDir, dir))
	if err != nil {
		t.Fatalf("kustomize %s: %v", dir, err)
	}
	text, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	rendered.Store(dir, string(text))
	return string(text)
}

// documents splits a YAML stream.
func documents(stream string) []string {
	return strings.Split(stream, "\n---\n")
}

// newObject returns an empty object of a kind, or nil for a kind that deploy/ should not have.
func newObject(kind metav1.TypeMeta) any {
	switch kind.APIVersion + " " + kind.Kind {
	case "v1 Namespace":
		return &corev1.Namespace{}
	case "v1 ServiceAccount":
		return &corev1.ServiceAccount{}
	case "v1 Secret":
		return &corev1.Secret{}
	case "v1 Service":
		return &corev1.Service{}
	case "v1 ConfigMap":
		return &corev1.ConfigMap{}
	case "v1 Pod":
		return &corev1.Pod{}
	case "apps/v1 DaemonSet":
		return &appsv1.DaemonSet{}
	case "apps/v1 Deployment":
		return &appsv1.Deployment{}
	case "batch/v1 Job":
		return &batchv1.Job{}
	case "networking.k8s.io/v1 NetworkPolicy":
		return &networkingv1.NetworkPolicy{}
	case "policy/v1 PodDisruptionBudget":
		return &policyv1.PodDisruptionBudget{}
	case "rbac.authorization.k8s.io/v1 ClusterRole":
		return &rbacv1.ClusterRole{}
	case "rbac.authorization.k8s.io/v1 ClusterRoleBinding":
		return &rbacv1.ClusterRoleBinding{}
	case "rbac.authorization.k8s.io/v1 Role":
		return &rbacv1.Role{}
	case "rbac.authorization.k8s.io/v1 RoleBinding":
		return &rbacv1.RoleBinding{}
	case "admissionregistration.k8s.io/v1 MutatingWebhookConfiguration":
		return &admissionv1.MutatingWebhookConfiguration{}
	case "cert-manager.io/v1 Certificate", "cert-manager.io/v1 Issuer":
		return &map[string]any{} // this test has no types for cert-manager
	case "monitoring.coreos.com/v1 PrometheusRule":
		return &monitoringv1.PrometheusRule{}
	case "monitoring.coreos.com/v1 PodMonitor":
		return &monitoringv1.PodMonitor{}
	case "monitoring.coreos.com/v1 ServiceMonitor":
		return &monitoringv1.ServiceMonitor{}
	}
	return nil
}

// decode decodes one document like the API server with fieldValidation=Strict: unknown and duplicate
// fields are errors.
func decode(t *testing.T, document string) any {
	t.Helper()
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
		t.Fatalf("%v in\n%s", err, document)
	}
	object := newObject(kind)
	if object == nil {
		t.Fatalf("%s %s: a kind that this test does not know", kind.APIVersion, kind.Kind)
	}
	if err := yaml.UnmarshalStrict([]byte(document), object); err != nil {
		t.Fatalf("%s: %v", kind.Kind, err)
	}
	return object
}

// variant has the objects of a variant that the tests check.
type variant struct {
	pod     corev1.PodTemplateSpec
	config  map[string]string // the ConfigMap's data
	objects []any
}

func load(t *testing.T, dir string) variant {
	t.Helper()
	var v variant
	for _, document := range documents(render(t, dir)) {
		object := decode(t, document)
		v.objects = append(v.objects, object)
		switch o := object.(type) {
		case *corev1.Pod:
			v.pod = corev1.PodTemplateSpec{ObjectMeta: o.ObjectMeta, Spec: o.Spec}
		case *appsv1.Deployment:
			v.pod = o.Spec.Template
		case *batchv1.Job:
			v.pod = o.Spec.Template
		case *corev1.ConfigMap:
			v.config = o.Data
		}
	}
	if len(v.pod.Spec.Containers) == 0 {
		t.Fatalf("%s contains no pod", dir)
	}
	return v
}

// container returns the container or init container of a name, or nil.
func (v variant) container(name string) *corev1.Container {
	for _, list := range [][]corev1.Container{v.pod.Spec.InitContainers, v.pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// TestEveryFileIsRead fails for a file in deploy/ that no other test reads.
func TestEveryFileIsRead(t *testing.T) {
	read := map[string]bool{"components": true, "webhook": true, "azwi-webhook": true, "monitoring": true, "README.md": true}
	for _, dir := range variants {
		read[dir] = true
	}
	entries, err := os.ReadDir(deployDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if !read[entry.Name()] {
			t.Errorf("deploy/%s: no test reads it; add it to variants", entry.Name())
		}
	}
	// The variants must use every component, so that rendering them reads all components.
	var used strings.Builder
	for _, pattern := range []string{"*/kustomization.yaml", "components/*/kustomization.yaml"} {
		files, err := filepath.Glob(filepath.Join(deployDir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			used.Write(text)
		}
	}
	components, err := os.ReadDir(filepath.Join(deployDir, "components"))
	if err != nil {
		t.Fatal(err)
	}
	for _, component := range components {
		if !strings.Contains(used.String(), "- ../components/"+component.Name()) && !strings.Contains(used.String(), "- ../"+component.Name()+"\n") {
			t.Errorf("deploy/components/%s: no kustomization uses it", component.Name())
		}
	}
}

// TestStrictDecodingIsStrict checks that decode refuses invalid documents.
func TestStrictDecodingIsStrict(t *testing.T) {
	for _, c := range []struct{ name, document string }{
		{"unknown field", "spec: {containers: [{name: a, runAsUsr: 1}]}"},
		{"field given twice", "spec: {hostNetwork: true, hostNetwork: false}"},
		{"wrong type", "spec: {hostNetwork: 8}"},
	} {
		if err := yaml.UnmarshalStrict([]byte(c.document), &corev1.Pod{}); err == nil {
			t.Errorf("%s: decoded without an error", c.name)
		}
	}
}
