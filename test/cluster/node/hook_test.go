package node

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
)

// hookTimeout is the limit of the hook in these tests. That of injected pods is 20 s.
const hookTimeout = 5 * time.Second

// heldPod is a pod whose proxy runs and is not ready: its federated token has expired. So its hook
// waits, until release gives the proxy a valid token or the hook's time is over.
type heldPod struct {
	*corev1.Pod
	file string // the federated token of the proxy, on the node
}

// startHeld creates a held pod, and waits until its hook runs. No webhook changes it: it is the pod
// that injection makes, with another path of the token and the limit hookTimeout.
func startHeld(ctx context.Context, t *testing.T) (held heldPod, subject string) {
	t.Helper()
	namespace, subject := appNamespace(ctx, t, map[string]string{webhookLabel: "none"})
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	held.file = filepath.Join(dir, "token")
	writeToken(t, held.file, expiredToken())
	pod := injectedPod(t, namespace)
	kind := corev1.HostPathDirectory
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "held", VolumeSource: corev1.VolumeSource{
		HostPath: &corev1.HostPathVolumeSource{Path: dir, Type: &kind}}})
	proxy := &pod.Spec.InitContainers[1]
	proxy.VolumeMounts = append(proxy.VolumeMounts, corev1.VolumeMount{Name: "held", MountPath: "/held", ReadOnly: true})
	for i := range proxy.Env {
		if proxy.Env[i].Name == azure.EnvFederatedTokenFile {
			proxy.Env[i].Value = "/held/token"
		}
	}
	proxy.Lifecycle.PostStart.Exec.Command[2] = "--probe-timeout=" + hookTimeout.String()
	created, err := running.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deletePod(namespace, pod.Name) })
	held.Pod = created
	if err := cluster.Wait(ctx, held.hookRuns); err != nil {
		t.Fatal(err)
	}
	return held, subject
}

// injectedPod returns the pod client as injection makes it.
func injectedPod(t *testing.T, namespace string) *corev1.Pod {
	t.Helper()
	template := client()
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name, pod.Namespace = "client", namespace
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "app", Annotations: map[string]string{inject.ClientIDAnnotation: clientID}}}
	injected, err := running.Inject(pod, account, inject.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return injected
}

// expiredToken returns a federated token that expired an hour ago. The proxy does not verify its
// signature.
func expiredToken() string {
	part := base64.RawURLEncoding.EncodeToString
	claims := fmt.Sprintf(`{"iss":%q,"sub":"held","aud":[%q],"iat":%d,"exp":%d}`, cluster.Issuer, azure.Audience,
		time.Now().Add(-2*time.Hour).Unix(), time.Now().Add(-time.Hour).Unix())
	return strings.Join([]string{part([]byte(`{"alg":"RS256"}`)), part([]byte(claims)), part([]byte("none"))}, ".")
}

// writeToken replaces a token as the kubelet does: by a rename.
func writeToken(t *testing.T, file, token string) {
	t.Helper()
	err := os.WriteFile(file+".new", []byte(token), 0o644)
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// release gives the proxy the token that the kubelet wrote for the pod.
func (h heldPod) release(t *testing.T) {
	t.Helper()
	writeToken(t, h.file, projected(t, h.Pod))
}

// hookRuns is a condition for [cluster.Wait]: a process of the pod runs the probe of the hook.
func (h heldPod) hookRuns(context.Context) error {
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range commands {
		command, _ := os.ReadFile(file) // the process may have exited
		groups, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cgroup"))
		if strings.HasPrefix(string(command), "/proxy\x00--probe\x00") && strings.Contains(string(groups), string(h.UID)) {
			return nil
		}
	}
	return errors.New("the hook does not run")
}

// checkNotStarted checks that none of the pod's own containers was ever started.
func checkNotStarted(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	for _, name := range []string{"fetch", "app"} {
		if s := status(t, pod, name); s.ContainerID != "" || s.RestartCount > 0 {
			t.Errorf("container %s was started: %s", name, cluster.Describe(pod))
		}
	}
}

// proxyEnd is a condition for WaitPod: the message of the proxy's last termination contains the text.
func proxyEnd(text string) func(*corev1.Pod) error {
	return func(pod *corev1.Pod) error {
		for _, s := range pod.Status.InitContainerStatuses {
			for _, state := range []corev1.ContainerState{s.State, s.LastTerminationState} {
				if end := state.Terminated; s.Name == inject.ProxyName && end != nil && strings.Contains(end.Message, text) {
					return nil
				}
			}
		}
		return fmt.Errorf("the proxy's status has no message with %q: %s", text, cluster.Describe(pod))
	}
}

// TestHookFails checks that while the proxy is not ready, no other container of the pod starts; that
// the container's status has the cause; and that the pod starts when the proxy is ready.
func TestHookFails(t *testing.T) {
	ctx := startTest(t)
	held, subject := startHeld(ctx, t)
	pod, err := running.WaitPod(ctx, held.Namespace, held.Name, proxyEnd("proxy: not ready within 5s (--probe-timeout); last answer of http://127.0.0.1:8000/readyz: 503 Service Unavailable: federated-token: AZURE_FEDERATED_TOKEN_FILE: "))
	if err != nil {
		t.Fatal(err)
	}
	t.Log(cluster.Describe(pod))
	checkNotStarted(t, pod)
	held.release(t)
	if pod, err = running.WaitPod(ctx, held.Namespace, held.Name, cluster.Running); err != nil {
		t.Fatal(err)
	}
	checkInitToken(ctx, t, pod, subject)
	getToken(ctx, t, pod, subject, "/azidentity")
}

// TestProxyDoesNotStart checks that the container's status has the cause if the proxy exits while
// its hook waits, and that no other container of the pod starts.
func TestProxyDoesNotStart(t *testing.T) {
	ctx := startTest(t)
	namespace, _ := appNamespace(ctx, t, nil)
	template := client(annotate(inject.ProxyEnvAnnotation, `{"PROXY_LOG_FORMAT": "xml"}`))
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name = "client"
	if _, err := running.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deletePod(namespace, pod.Name) })
	pod, err := running.WaitPod(ctx, namespace, pod.Name, proxyEnd(`proxy: --log-format (PROXY_LOG_FORMAT) "xml": must be `))
	if err != nil {
		t.Fatal(err)
	}
	t.Log(cluster.Describe(pod))
	checkNotStarted(t, pod)
}

// TestDeletedWhileHookWaits checks that a pod that is deleted while its hook waits is gone when the
// hook's time is over, and that no other container of it was started. The kubelet does not
// interrupt a hook.
func TestDeletedWhileHookWaits(t *testing.T) {
	ctx := startTest(t)
	held, _ := startHeld(ctx, t)
	began := time.Now()
	if err := running.Client.CoreV1().Pods(held.Namespace).Delete(ctx, held.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		pod, err := running.Client.CoreV1().Pods(held.Namespace).Get(ctx, held.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return err
		}
		checkNotStarted(t, pod)
		return errors.New("the pod still exists: " + cluster.Describe(pod))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("gone after %s", time.Since(began).Round(time.Millisecond))
}

// TestKubeletRestartedWhileHookWaits checks what a restart of the kubelet costs: the hook ends with
// the kubelet and does not run again, so the pod's other containers start although the proxy is not
// ready. They are behind the redirect, and get tokens when it is.
func TestKubeletRestartedWhileHookWaits(t *testing.T) {
	ctx := startTest(t)
	held, subject := startHeld(ctx, t)
	if err := running.RestartKubelet(ctx); err != nil {
		t.Fatal(err)
	}
	_, err := running.WaitPod(ctx, held.Namespace, held.Name, func(p *corev1.Pod) error {
		if status(t, p, "fetch").ContainerID == "" {
			return fmt.Errorf("the next container has not been started: %s", cluster.Describe(p))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if held.hookRuns(ctx) == nil {
		t.Error("the hook runs again")
	}
	held.release(t)
	pod, err := running.WaitPod(ctx, held.Namespace, held.Name, cluster.Running)
	if err != nil {
		t.Fatal(err)
	}
	checkInitToken(ctx, t, pod, subject)
	getToken(ctx, t, pod, subject, "/azidentity")
}
