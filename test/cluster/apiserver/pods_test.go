package apiserver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
)

const (
	proxyImage     = registry + "/imds-oidc-proxy:v0.1.0"
	proxyInitImage = registry + "/imds-oidc-proxy-init:v0.1.0"
	appImage       = "registry.example.test/team/app:1.0.0"
)

// edit changes a pod before it is made.
type edit func(*corev1.Pod)

func annotate(name, value string) edit {
	return func(p *corev1.Pod) { p.Annotations[name] = value }
}

func podOfAccount(account string) edit {
	return func(p *corev1.Pod) { p.Spec.ServiceAccountName = account }
}

// newPod is a labelled pod of the account app, with an init container of its own.
func newPod(edits ...edit) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Labels: map[string]string{inject.UseLabel: "true"}, Annotations: map[string]string{}},
		Spec: corev1.PodSpec{
			ServiceAccountName: "app",
			InitContainers:     []corev1.Container{{Name: "migrate", Image: appImage}},
			Containers:         []corev1.Container{{Name: "app", Image: appImage}},
		},
	}
	for _, e := range edits {
		e(pod)
	}
	return pod
}

// injected is newPod with the proxy asked for.
func injected(edits ...edit) *corev1.Pod {
	return newPod(append([]edit{annotate(inject.InjectProxyAnnotation, "true")}, edits...)...)
}

// appNamespace makes a namespace with the annotated service account app, and labels
// in pairs of name and value.
func appNamespace(ctx context.Context, t *testing.T, labels ...string) string {
	t.Helper()
	set := map[string]string{}
	for i := 0; i+1 < len(labels); i += 2 {
		set[labels[i]] = labels[i+1]
	}
	namespace, err := running.NewNamespace(ctx, set)
	if err != nil {
		t.Fatal(err)
	}
	makeAccount(ctx, t, namespace, "app", inject.ClientIDAnnotation, clientID)
	return namespace
}

// warnings collects what the API server says beside its answers.
type warnings struct {
	mu   sync.Mutex
	said []string
}

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, text)
}

// create makes a pod and reads it back, with the warnings that came.
func create(ctx context.Context, t *testing.T, namespace string, pod *corev1.Pod) (*corev1.Pod, []string, error) {
	t.Helper()
	config, said := rest.CopyConfig(running.REST), &warnings{}
	config.WarningHandler = said
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	made, err := client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		return nil, said.said, err
	}
	read, err := client.CoreV1().Pods(namespace).Get(ctx, made.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return read, said.said, nil
}

// mustCreate is create for a pod that has to be admitted, with one warning that holds
// the text, or with none where it is empty.
func mustCreate(ctx context.Context, t *testing.T, namespace string, pod *corev1.Pod, warning string) *corev1.Pod {
	t.Helper()
	made, said, err := create(ctx, t, namespace, pod)
	if err != nil {
		t.Fatal(err)
	}
	if warning == "" && len(said) > 0 {
		t.Errorf("warnings %q, want none", said)
	}
	if warning != "" && (len(said) != 1 || !strings.Contains(said[0], warning)) {
		t.Errorf("warnings %q, want one with %q", said, warning)
	}
	return made
}

func names(containers []corev1.Container) string {
	var all []string
	for _, c := range containers {
		all = append(all, c.Name)
	}
	return strings.Join(all, " ")
}

// container is that of the name, of either list. None is the end of the test.
func container(t *testing.T, pod *corev1.Pod, name string) *corev1.Container {
	t.Helper()
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		if i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name }); i >= 0 {
			return &list[i]
		}
	}
	t.Fatalf("no container %s among %s; %s", name, names(pod.Spec.InitContainers), names(pod.Spec.Containers))
	return nil
}

// env is a variable of a container, and whether it has it.
func env(c *corev1.Container, name string) (string, bool) {
	i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name })
	if i < 0 {
		return "", false
	}
	return c.Env[i].Value, true
}

// checkEnv compares variables of a container: NAME=VALUE, or NAME for none.
func checkEnv(t *testing.T, c *corev1.Container, want ...string) {
	t.Helper()
	for _, w := range want {
		name, value, has := strings.Cut(w, "=")
		if got, there := env(c, name); got != value || there != has {
			t.Errorf("%s: %s is %q (there: %t), want %q", c.Name, name, got, there, w)
		}
	}
}

// tokenVolumes lists the volumes with a token of Entra's audience, as
// NAME:EXPIRATION, the token's path in them being what the mounts are for.
func tokenVolumes(pod *corev1.Pod) map[string]corev1.ServiceAccountTokenProjection {
	found := map[string]corev1.ServiceAccountTokenProjection{}
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == azure.Audience {
				found[v.Name] = *s.ServiceAccountToken
			}
		}
	}
	return found
}

// checkToken checks that a container finds the federated token where its environment
// says, read-only, and returns the projection.
func checkToken(t *testing.T, pod *corev1.Pod, name string) corev1.ServiceAccountTokenProjection {
	t.Helper()
	c, volumes := container(t, pod, name), tokenVolumes(pod)
	file, _ := env(c, "AZURE_FEDERATED_TOKEN_FILE")
	for _, m := range c.VolumeMounts {
		if projection, ok := volumes[m.Name]; ok && m.MountPath+"/"+projection.Path == file {
			if !m.ReadOnly {
				t.Errorf("%s: the token can be written", name)
			}
			return projection
		}
	}
	t.Fatalf("%s: AZURE_FEDERATED_TOKEN_FILE is %q, mounts %+v", name, file, c.VolumeMounts)
	return corev1.ServiceAccountTokenProjection{}
}

// checkNoToken checks that a container has nothing to do with the token.
func checkNoToken(t *testing.T, pod *corev1.Pod, name string) {
	t.Helper()
	c, volumes := container(t, pod, name), tokenVolumes(pod)
	checkEnv(t, c, "AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_AUTHORITY_HOST")
	for _, m := range c.VolumeMounts {
		if _, is := volumes[m.Name]; is {
			t.Errorf("%s: the token is mounted at %s", name, m.MountPath)
		}
	}
}

// checkOurs checks that the pod is as our webhook alone makes it.
func checkOurs(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	checkContainers(t, pod)
	checkNoToken(t, pod, inject.ProxyInitName)
	if volumes := tokenVolumes(pod); len(volumes) != 1 {
		t.Errorf("%d volumes with the token, want 1: %v", len(volumes), volumes)
	}
}

// checkContainers checks that the pod has one proxy and one init container, ours, in
// the order in that they have to run, beside the pod's own.
func checkContainers(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if got, want := names(pod.Spec.InitContainers)+"; "+names(pod.Spec.Containers), "azwi-proxy-init azwi-proxy migrate; app"; got != want {
		t.Fatalf("containers %s, want %s", got, want)
	}
	for name, image := range map[string]string{inject.ProxyName: proxyImage, inject.ProxyInitName: proxyInitImage} {
		if got := container(t, pod, name).Image; got != image {
			t.Errorf("%s: image %s, want %s", name, got, image)
		}
	}
	proxy := container(t, pod, inject.ProxyName)
	if proxy.RestartPolicy == nil || *proxy.RestartPolicy != corev1.ContainerRestartPolicyAlways || proxy.StartupProbe == nil {
		t.Errorf("%s is no native sidecar with a startup probe", proxy.Name)
	}
	if got := fmt.Sprint(container(t, pod, inject.ProxyInitName).SecurityContext.Capabilities.Add); got != "[NET_ADMIN]" {
		t.Errorf("the init container adds the capabilities %s", got)
	}
	checkToken(t, pod, inject.ProxyName)
}

// deleteNow waits for no container to end: there is no kubelet to ask.
var deleteNow = metav1.DeleteOptions{GracePeriodSeconds: new(int64)}
