package inject_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/inject"
)

const (
	clientID = "66666666-7777-4888-9999-aaaaaaaaaaaa"
	tenantID = "11111111-2222-4333-8444-555555555555"
	objectID = "bbbbbbbb-cccc-4ddd-8eee-ffffffffffff"
	otherID  = "cccccccc-dddd-4eee-8fff-aaaaaaaaaaaa"
)

func config() inject.Config {
	return inject.Config{
		ProxyImage:     "registry.example.test/imds-oidc-proxy:v1.0.0",
		ProxyInitImage: "registry.example.test/imds-oidc-proxy-init:v1.0.0",
		TenantID:       tenantID,
	}
}

func account() *corev1.ServiceAccount {
	a := &corev1.ServiceAccount{}
	a.Name = "app"
	a.Annotations = map[string]string{inject.ClientIDAnnotation: clientID}
	return a
}

// labelled returns a pod with one container and the label that enables injection.
func labelled(change ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{}
	pod.Name = "app"
	pod.Labels = map[string]string{inject.UseLabel: "true"}
	pod.Spec.Containers = []corev1.Container{{Name: "app", Image: "registry.example.test/team/app:1.0.0"}}
	for _, c := range change {
		c(pod)
	}
	return pod
}

// injected returns a pod with the annotation that requests the proxy.
func injected(change ...func(*corev1.Pod)) *corev1.Pod {
	return labelled(append([]func(*corev1.Pod){annotate(inject.InjectProxyAnnotation, "true")}, change...)...)
}

func annotate(name, value string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { metav1.SetMetaDataAnnotation(&pod.ObjectMeta, name, value) }
}

// initNamed adds an init container of the author.
func initNamed(name string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: name, Image: "registry.example.test/team/init:1.0.0"})
	}
}

func encode(t testing.TB, pod *corev1.Pod) []byte {
	t.Helper()
	text, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// mutate returns the pod after Pod's patch, as after one call of the webhook.
func mutate(t testing.TB, pod *corev1.Pod, a *corev1.ServiceAccount, c inject.Config) *corev1.Pod {
	t.Helper()
	before := encode(t, pod)
	result, err := inject.Pod(pod, a, c)
	if err != nil {
		t.Fatalf("%v: %s", err, before)
	}
	if after := encode(t, pod); string(after) != string(before) {
		t.Fatalf("Pod changed its argument: %s, before %s", after, before)
	}
	return decode(t, apply(t, before, result.Patch))
}

func find(list []corev1.Container, name string) *corev1.Container {
	i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &list[i]
}

func names(list []corev1.Container) []string {
	all := []string{}
	for _, c := range list {
		all = append(all, c.Name)
	}
	return all
}

// env returns a variable of a container, or nil.
func env(c *corev1.Container, name string) *corev1.EnvVar {
	i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name })
	if i < 0 {
		return nil
	}
	return &c.Env[i]
}

func value(c *corev1.Container, name string) string {
	if e := env(c, name); e != nil {
		return e.Value
	}
	return "(unset)"
}

// all returns the init containers and the containers.
func all(pod *corev1.Pod) []*corev1.Container {
	var list []*corev1.Container
	for i := range pod.Spec.InitContainers {
		list = append(list, &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		list = append(list, &pod.Spec.Containers[i])
	}
	return list
}

// checkValid checks for duplicate names and paths, which the API server would refuse or ignore.
func checkValid(t testing.TB, pod *corev1.Pod) {
	t.Helper()
	unique := func(what string, seen map[string]bool, key string) {
		if seen[key] {
			t.Errorf("%s %q twice", what, key)
		}
		seen[key] = true
	}
	volumes, containers := map[string]bool{}, map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		unique("volume", volumes, v.Name)
	}
	for _, c := range all(pod) {
		unique("container", containers, c.Name)
		paths, variables, ports := map[string]bool{}, map[string]bool{}, map[string]bool{}
		for _, m := range c.VolumeMounts {
			unique(c.Name+": mount path", paths, m.MountPath)
			if !volumes[m.Name] {
				t.Errorf("%s mounts %q, which the pod does not have", c.Name, m.Name)
			}
		}
		for _, e := range c.Env {
			unique(c.Name+": variable", variables, e.Name)
		}
		for _, p := range c.Ports {
			unique(c.Name+": port", ports, fmt.Sprint(p.ContainerPort))
		}
	}
}

// apply applies a patch to a document, as the API server does.
func apply(t testing.TB, document []byte, operations []inject.Operation) []byte {
	t.Helper()
	if len(operations) == 0 {
		return document
	}
	text, err := json.Marshal(operations)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(text)
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	patched, err := patch.Apply(document)
	if err != nil {
		t.Fatalf("%v: %s\nto %s", err, text, document)
	}
	return patched
}

// decode decodes a pod from YAML or JSON.
func decode(t testing.TB, document []byte) *corev1.Pod {
	t.Helper()
	var pod corev1.Pod
	if err := yaml.Unmarshal(document, &pod); err != nil {
		t.Fatalf("%v: %s", err, document)
	}
	return &pod
}
