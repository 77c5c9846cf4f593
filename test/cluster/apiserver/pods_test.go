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
	proxyImage     = registry + "/imds-oidc-proxy:v0.2.0"
	proxyInitImage = registry + "/imds-oidc-proxy-init:v0.2.0"
	appImage       = "registry.example.test/team/app:1.0.0"
)

// edit changes a pod before it is created.
type edit func(*corev1.Pod)

func annotate(name, value string) edit {
	return func(p *corev1.Pod) { p.Annotations[name] = value }
}

func podOfAccount(account string) edit {
	return func(p *corev1.Pod) { p.Spec.ServiceAccountName = account }
}

// newPod returns a pod with the injection label, the service account app, the container app
// and the init container migrate.
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

// injected returns newPod with the annotation that requests the proxy.
func injected(edits ...edit) *corev1.Pod {
	return newPod(append([]edit{annotate(inject.InjectProxyAnnotation, "true")}, edits...)...)
}

// appNamespace creates a namespace with the service account app, which has the client ID
// annotation. labels are pairs of name and value.
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

// warnings collects the API server's warnings.
type warnings struct {
	mu    sync.Mutex
	texts []string
}

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

// create creates a pod, reads it back, and returns it with the warnings.
func create(ctx context.Context, t *testing.T, namespace string, pod *corev1.Pod) (*corev1.Pod, []string, error) {
	t.Helper()
	config, received := rest.CopyConfig(running.REST), &warnings{}
	config.WarningHandler = received
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	created, err := client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
	if err != nil {
		return nil, received.texts, err
	}
	read, err := client.CoreV1().Pods(namespace).Get(ctx, created.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return read, received.texts, nil
}

// mustCreate is like create, and fails the test if the pod is refused. There must be one
// warning, which contains the text, or no warning if the text is empty.
func mustCreate(ctx context.Context, t *testing.T, namespace string, pod *corev1.Pod, warning string) *corev1.Pod {
	t.Helper()
	created, texts, err := create(ctx, t, namespace, pod)
	if err != nil {
		t.Fatal(err)
	}
	if warning == "" && len(texts) > 0 {
		t.Errorf("warnings %q, want none", texts)
	}
	if warning != "" && (len(texts) != 1 || !strings.Contains(texts[0], warning)) {
		t.Errorf("warnings %q, want one that contains %q", texts, warning)
	}
	return created
}

// names returns the containers' names, separated by spaces.
func names(containers []corev1.Container) string {
	var all []string
	for _, c := range containers {
		all = append(all, c.Name)
	}
	return strings.Join(all, " ")
}

// container returns the container or init container with the name. The test fails if there
// is none.
func container(t *testing.T, pod *corev1.Pod, name string) *corev1.Container {
	t.Helper()
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		if i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name }); i >= 0 {
			return &list[i]
		}
	}
	t.Fatalf("the pod has no container %s, only %s; %s", name, names(pod.Spec.InitContainers), names(pod.Spec.Containers))
	return nil
}

// env returns the value of a container's environment variable, and whether it exists.
func env(c *corev1.Container, name string) (string, bool) {
	i := slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name })
	if i < 0 {
		return "", false
	}
	return c.Env[i].Value, true
}

// checkEnv checks environment variables of a container. NAME=VALUE means that the variable
// has the value, and NAME that it does not exist.
func checkEnv(t *testing.T, c *corev1.Container, want ...string) {
	t.Helper()
	for _, w := range want {
		name, value, wanted := strings.Cut(w, "=")
		if got, exists := env(c, name); got != value || exists != wanted {
			t.Errorf("%s: %s is %q (exists: %t), want %s", c.Name, name, got, exists, w)
		}
	}
}

// tokenVolumes returns the projections of tokens with Entra's audience, by the names of
// their volumes.
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

// checkToken checks that AZURE_FEDERATED_TOKEN_FILE of a container is the path of a
// federated token, that its mount is read-only, and returns the token's projection.
func checkToken(t *testing.T, pod *corev1.Pod, name string) corev1.ServiceAccountTokenProjection {
	t.Helper()
	c, volumes := container(t, pod, name), tokenVolumes(pod)
	file, _ := env(c, "AZURE_FEDERATED_TOKEN_FILE")
	for _, m := range c.VolumeMounts {
		if projection, ok := volumes[m.Name]; ok && m.MountPath+"/"+projection.Path == file {
			if !m.ReadOnly {
				t.Errorf("%s: the mount of the token is not read-only", name)
			}
			return projection
		}
	}
	t.Fatalf("%s: no token is mounted at AZURE_FEDERATED_TOKEN_FILE, %q: %+v", name, file, c.VolumeMounts)
	return corev1.ServiceAccountTokenProjection{}
}

// checkNoToken checks that a container has no mount of a token and no variables for it.
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

// checkInjected checks that the pod is as our webhook makes it, without azwi's webhook.
func checkInjected(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	checkContainers(t, pod)
	checkToken(t, pod, inject.ProxyName)
	checkNoToken(t, pod, inject.ProxyInitName)
	if volumes := tokenVolumes(pod); len(volumes) != 1 {
		t.Errorf("the pod has %d volumes with a token, want 1: %v", len(volumes), volumes)
	}
}

// checkContainers checks that the pod has one proxy and one init container, that both are
// ours, and that they are in the order in which they must start.
func checkContainers(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if got, want := names(pod.Spec.InitContainers)+"; "+names(pod.Spec.Containers), "azwi-proxy-init azwi-proxy migrate; app"; got != want {
		t.Fatalf("containers %s, want %s", got, want)
	}
	for name, image := range map[string]string{inject.ProxyName: proxyImage, inject.ProxyInitName: proxyInitImage} {
		if got := container(t, pod, name).Image; got != image {
			t.Errorf("%s has the image %s, want %s", name, got, image)
		}
	}
	proxy := container(t, pod, inject.ProxyName)
	if proxy.RestartPolicy == nil || *proxy.RestartPolicy != corev1.ContainerRestartPolicyAlways || proxy.Lifecycle == nil || proxy.StartupProbe != nil {
		t.Errorf("%s is not a native sidecar with a postStart hook and without a startup probe", proxy.Name)
	}
	if got := fmt.Sprint(container(t, pod, inject.ProxyInitName).SecurityContext.Capabilities.Add); got != "[NET_ADMIN]" {
		t.Errorf("the init container adds the capabilities %s, want [NET_ADMIN]", got)
	}
}

// deleteNow has no grace period, because no kubelet would finish the deletion.
var deleteNow = metav1.DeleteOptions{GracePeriodSeconds: new(int64)}
