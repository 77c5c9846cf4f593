package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
)

// pyApplication is an image of [cluster.CopyImage]. getByPython is the command of its client.
const pyApplication = "localhost/pysdk:test"

var getByPython = []string{"/pysdk", "/app/identity.py", "credential=managed", "resource=https://vault.azure.net"}

// restricted makes the pod comply with the restricted Pod Security Standard.
func restricted(p *corev1.PodTemplateSpec) {
	yes, no := true, false
	p.Spec.SecurityContext.RunAsNonRoot = &yes
	p.Spec.SecurityContext.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			list[i].SecurityContext = &corev1.SecurityContext{AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
		}
	}
}

// restrictedNamespace is appNamespace in a namespace that enforces this standard.
func restrictedNamespace(ctx context.Context, t *testing.T) (namespace, subject string) {
	t.Helper()
	return appNamespace(ctx, t, map[string]string{"pod-security.kubernetes.io/enforce": "restricted"})
}

// TestNoRedirect checks redirect mode none under the restricted Pod Security Standard, with
// a client that uses AZURE_POD_IDENTITY_AUTHORITY_HOST: the SDK for JavaScript.
func TestNoRedirect(t *testing.T) {
	ctx := startTest(t)
	namespace, subject := restrictedNamespace(ctx, t)
	pod := startPod(ctx, t, namespace, client(annotate(inject.RedirectAnnotation, "none"), annotate(inject.AppServiceAnnotation, "false"), javaScript, restricted))
	checkInitToken(ctx, t, pod, subject)
	getToken(ctx, t, pod, subject, getByJavaScript[0], getByJavaScript[1:]...)
}

// sdks has a container for each of three clients: a static program in Go, Python and Node.js.
func sdks(p *corev1.PodTemplateSpec) {
	p.Spec.Containers = []corev1.Container{
		{Name: "go", Image: application, Command: []string{"/pause"}},
		{Name: "python", Image: pyApplication, Command: []string{"/pause"}},
		{Name: "node", Image: jsApplication, Command: []string{"/pause"}},
	}
}

// TestAppService checks that in a pod without a redirect, under the restricted Pod Security
// Standard, three clients get tokens with no change but injection, in the protocol of App
// Service: for the pod's identity and for one that they name. Their secret is the pod's UID,
// which the pod's manifest does not contain.
func TestAppService(t *testing.T) {
	ctx := startTest(t)
	namespace, subject := restrictedNamespace(ctx, t)
	pod := startPod(ctx, t, namespace, client(annotate(inject.RedirectAnnotation, "none"), sdks, restricted))
	checkInitToken(ctx, t, pod, subject)
	const unknown = "deadbeef-0000-4000-8000-00000000dead"
	for container, command := range map[string]struct {
		plain, named, unknown []string
	}{
		"go":     {[]string{"/azidentity"}, []string{"/azidentity", "-client-id=" + clientID}, []string{"/azidentity", "-client-id=" + unknown}},
		"python": {getByPython, append(getByPython[:4:4], "client_id="+clientID), append(getByPython[:4:4], "client_id="+unknown)},
		"node":   {getByJavaScript, append(getByJavaScript[:3:3], "client_id="+clientID), append(getByJavaScript[:3:3], "client_id="+unknown)},
	} {
		t.Run(container, func(t *testing.T) {
			for _, args := range [][]string{command.plain, command.named} {
				output, err := running.Exec(ctx, namespace, pod.Name, container, args...)
				if err != nil {
					t.Fatal(err)
				}
				checkToken(t, output, subject)
			}
			output, err := running.Exec(ctx, namespace, pod.Name, container, command.unknown...)
			if text := fmt.Sprint(output, err); strings.Contains(text, `"token"`) || !strings.Contains(text, "dentity") {
				t.Errorf("for an unknown identity: %s, want the client's error", text)
			}
		})
	}
	log, err := running.Logs(ctx, namespace, pod.Name, inject.ProxyName, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(log, `"path":"`+azure.AppServicePath+`"`); got < 9 || strings.Contains(log, `"path":"/metadata/identity`) {
		t.Errorf("%d requests in the protocol of App Service, want all of them:\n%s", got, log)
	}
	if uid := string(pod.UID); strings.Contains(log, uid) || strings.Contains(pod.Spec.String(), uid) {
		t.Error("the log or the pod's specification has the secret")
	}
}

// TestRequireIMDSBlocked checks that the application does not start while the pod can reach the
// node's IMDS, if the proxy requires that it cannot.
func TestRequireIMDSBlocked(t *testing.T) {
	ctx := startTest(t)
	namespace, _ := restrictedNamespace(ctx, t)
	template := client(annotate(inject.RedirectAnnotation, "none"), annotate(inject.ProxyEnvAnnotation, `{"PROXY_REQUIRE_IMDS_BLOCKED":"true"}`), restricted)
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name = "client"
	if _, err := running.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deletePod(namespace, "client") })
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		log, err := running.Logs(ctx, namespace, "client", inject.ProxyName, false)
		if err == nil && !strings.Contains(log, "not ready: the node's IMDS is not blocked in this pod") {
			err = errors.New("the proxy does not report the node's IMDS:\n" + log)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := running.Client.CoreV1().Pods(namespace).Get(ctx, "client", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range append(got.Status.InitContainerStatuses, got.Status.ContainerStatuses...) {
		if s.Name != inject.ProxyName && (s.State.Running != nil || s.State.Terminated != nil) || s.Name == inject.ProxyName && s.Started != nil && *s.Started {
			t.Errorf("started: %s", cluster.Describe(got))
		}
	}
}

// TestNoRedirectOfManifests checks deploy/no-redirect with the SDK for Go, which uses only the
// variables of App Service, in its namespace with the restricted Pod Security Standard.
func TestNoRedirectOfManifests(t *testing.T) {
	ctx := startTest(t)
	subject := trust("restricted-demo", "app")
	applyVariant(ctx, t, "no-redirect", makeIdle(t))
	pod := podOf(ctx, t, "restricted-demo", "app=app", cluster.Running)
	output, err := running.Exec(ctx, "restricted-demo", pod.Name, "app", "/azidentity")
	if err != nil {
		t.Fatal(err)
	}
	checkToken(t, output, subject)
}
