package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/entra"
)

// edit changes a pod template before it is used.
type edit func(*corev1.PodTemplateSpec)

func annotate(name, value string) edit {
	return func(p *corev1.PodTemplateSpec) { p.Annotations[name] = value }
}

// client returns a pod template with the client of the SDK for Go. Its init container gets
// a token. Its container waits, so that a test can run the client in it. One label and one
// annotation request injection, and nothing else in the template concerns it.
func client(edits ...edit) corev1.PodTemplateSpec {
	user := int64(1000)
	p := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{
			Labels:      map[string]string{inject.UseLabel: "true", "app": "client"},
			Annotations: map[string]string{inject.InjectProxyAnnotation: "true"},
		},
		Spec: corev1.PodSpec{
			ServiceAccountName: "app",
			SecurityContext:    &corev1.PodSecurityContext{RunAsUser: &user, RunAsGroup: &user},
			InitContainers:     []corev1.Container{{Name: "fetch", Image: application}},
			Containers:         []corev1.Container{{Name: "app", Image: application, Command: []string{"/pause"}}},
		},
	}
	for _, e := range edits {
		e(&p)
	}
	return p
}

// appNamespace creates a namespace with the service account app, which has the client ID
// annotation and a federated credential.
func appNamespace(ctx context.Context, t *testing.T, labels map[string]string) (namespace, subject string) {
	t.Helper()
	namespace, err := running.NewNamespace(ctx, labels)
	if err != nil {
		t.Fatal(err)
	}
	_, err = running.Client.CoreV1().ServiceAccounts(namespace).Create(ctx, &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Annotations: map[string]string{inject.ClientIDAnnotation: clientID}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return namespace, trust(namespace, "app")
}

// startPod creates the pod client and waits until it is ready.
func startPod(ctx context.Context, t *testing.T, namespace string, template corev1.PodTemplateSpec) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name = "client"
	if _, err := running.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deletePod(namespace, "client") })
	pod, err := running.WaitPod(ctx, namespace, "client", cluster.Running)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// deletePod deletes a pod, so that its resources on the node become free. It does not wait
// until the pod has terminated.
func deletePod(namespace, name string) {
	now := int64(0)
	_ = running.Client.CoreV1().Pods(namespace).Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &now})
}

// getToken runs a client in the container app, and checks the token that it prints.
func getToken(ctx context.Context, t *testing.T, pod *corev1.Pod, subject, program string, args ...string) {
	t.Helper()
	output, err := running.Exec(ctx, pod.Namespace, pod.Name, "app", append([]string{program}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	checkToken(t, output, subject)
}

// checkInitToken checks the token that the pod's init container fetch printed.
func checkInitToken(ctx context.Context, t *testing.T, pod *corev1.Pod, subject string) {
	t.Helper()
	output, err := running.Logs(ctx, pod.Namespace, pod.Name, "fetch", false)
	if err != nil {
		t.Fatal(err)
	}
	checkToken(t, output, subject)
}

// startTest returns a context with the timeout. At the end of the test, it checks that the
// node's IMDS got no token request.
func startTest(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	since := len(running.Decoy.Requests())
	t.Cleanup(func() { checkNoNodeTokens(t, since) })
	return ctx
}

// TestInjectedDeployment checks that an application and its init containers get tokens with
// no change but injection, also in the pod that replaces a deleted one.
func TestInjectedDeployment(t *testing.T) {
	ctx := startTest(t)
	namespace, subject := appNamespace(ctx, t, nil)
	deployments := running.Client.AppsV1().Deployments(namespace)
	_, err := deployments.Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "client"}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}, Template: client(),
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = deployments.Delete(context.Background(), "client", metav1.DeleteOptions{}) })
	first := podOf(ctx, t, namespace, "app=client", cluster.Running)
	checkInitToken(ctx, t, first, subject)
	getToken(ctx, t, first, subject, "/azidentity")

	deletePod(namespace, first.Name)
	second := podOf(ctx, t, namespace, "app=client", func(p *corev1.Pod) error {
		if p.Name == first.Name {
			return errors.New("the first pod still exists")
		}
		return cluster.Running(p)
	})
	checkInitToken(ctx, t, second, subject)
	getToken(ctx, t, second, subject, "/azidentity")
	getToken(ctx, t, second, subject, "/adal", "resource=https://vault.azure.net")
}

// javaScript replaces the clients in the pod by the client of the SDK for JavaScript.
func javaScript(p *corev1.PodTemplateSpec) {
	p.Spec.InitContainers[0].Image, p.Spec.InitContainers[0].Command = jsApplication, getByJavaScript
	p.Spec.Containers[0].Image = jsApplication
}

// jsApplication is an image of [cluster.CopyImage]. getByJavaScript is the command of its
// client.
const jsApplication = "localhost/jssdk:test"

var getByJavaScript = []string{"/jssdk", "/app/identity.js", "resource=https://vault.azure.net"}

// TestInjectedJob checks that a Job with the sidecar in its pod completes.
func TestInjectedJob(t *testing.T) {
	t.Run("Go", func(t *testing.T) {
		testJob(t, client(func(p *corev1.PodTemplateSpec) { p.Spec.Containers[0].Command = nil })) // nil: the image's entry point, the client
	})
	t.Run("JavaScript", func(t *testing.T) {
		testJob(t, client(javaScript, func(p *corev1.PodTemplateSpec) { p.Spec.Containers[0].Command = getByJavaScript }))
	})
}

func testJob(t *testing.T, template corev1.PodTemplateSpec) {
	ctx := startTest(t)
	namespace, subject := appNamespace(ctx, t, nil)
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	_, err := running.Client.BatchV1().Jobs(namespace).Create(ctx,
		&batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "client"}, Spec: batchv1.JobSpec{Template: template}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := podOf(ctx, t, namespace, "job-name=client", cluster.Succeeded)
	checkInitToken(ctx, t, pod, subject)
	output, err := running.Logs(ctx, namespace, pod.Name, "app", false)
	if err != nil {
		t.Fatal(err)
	}
	checkToken(t, output, subject)
	waitComplete(ctx, t, namespace, "client")
}

func waitComplete(ctx context.Context, t *testing.T, namespace, name string) {
	t.Helper()
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		job, err := running.Client.BatchV1().Jobs(namespace).Get(ctx, name, metav1.GetOptions{})
		if err == nil && job.Status.Succeeded != 1 {
			err = errNotComplete
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestForwardedRequest checks that the proxy forwards a request that is not for a token to
// the node's IMDS.
func TestForwardedRequest(t *testing.T) {
	ctx := startTest(t)
	namespace, _ := appNamespace(ctx, t, nil)
	pod := startPod(ctx, t, namespace, client())
	output, err := running.Exec(ctx, namespace, pod.Name, "app", "/ask", "/metadata/instance?api-version=2021-02-01")
	if err != nil || !strings.Contains(output, "answered_by") {
		t.Errorf("instance metadata: %q, %v; want the decoy's answer", output, err)
	}
}

// TestSealed checks that no request from a sealed pod reaches the node's IMDS, even from
// the proxy's user, which the redirect exempts in other modes.
func TestSealed(t *testing.T) {
	ctx := startTest(t)
	namespace, subject := appNamespace(ctx, t, nil)
	asProxy := int64(1501)
	pod := startPod(ctx, t, namespace, client(annotate(inject.RedirectAnnotation, "sealed"), func(p *corev1.PodTemplateSpec) {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &asProxy, RunAsGroup: &asProxy}
	}))
	before := len(running.Decoy.Requests())
	getToken(ctx, t, pod, subject, "/azidentity")
	if output, err := running.Exec(ctx, namespace, pod.Name, "app", "/ask", "/metadata/instance?api-version=2021-02-01"); err == nil {
		t.Errorf("instance metadata: %q, want none", output)
	}
	if after := running.Decoy.Requests(); len(after) != before {
		t.Errorf("the node's IMDS got the requests %q", after[before:])
	}
}

// TestInstanceMetadata checks that a sealed pod gets instance metadata of a ConfigMap, with the
// name of its node, and nothing from the node's IMDS.
func TestInstanceMetadata(t *testing.T) {
	ctx := startTest(t)
	namespace, subject := appNamespace(ctx, t, nil)
	_, err := running.Client.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "region"},
		Data:       map[string]string{"instance.json": `{"compute": {"azEnvironment": "AzurePublicCloud", "location": "westeurope"}}`},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := startPod(ctx, t, namespace, client(annotate(inject.RedirectAnnotation, "sealed"), annotate(inject.InstanceMetadataAnnotation, "region")))
	before := len(running.Decoy.Requests())
	getToken(ctx, t, pod, subject, "/azidentity")
	for path, want := range map[string]string{
		"/metadata/instance/compute?api-version=2021-02-01":                      fmt.Sprintf(`{"azEnvironment":"AzurePublicCloud","location":"westeurope","name":%q,"osProfile":{"computerName":%[1]q}}`, pod.Spec.NodeName),
		"/metadata/instance/compute/location?api-version=2021-02-01&format=text": "westeurope",
		"/metadata/instance/compute/name?api-version=2021-02-01&format=text":     pod.Spec.NodeName,
	} {
		if got, err := running.Exec(ctx, namespace, pod.Name, "app", "/ask", path); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
		}
	}
	if after := running.Decoy.Requests(); len(after) != before {
		t.Errorf("the node's IMDS got the requests %q", after[before:])
	}
}

// TestObjectID checks that a request by object ID, which nothing in the pod maps, gets the token of
// the pod's identity, and that an unknown one gets none.
func TestObjectID(t *testing.T) {
	ctx := startTest(t)
	namespace, subject := appNamespace(ctx, t, nil)
	pod := startPod(ctx, t, namespace, client())
	token := func(query string) (entra.AccessToken, error) {
		output, err := running.Exec(ctx, namespace, pod.Name, "app", "/ask", "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"+query)
		if err != nil {
			return entra.AccessToken{}, err
		}
		var answer map[string]string
		if err := json.Unmarshal([]byte(output), &answer); err != nil {
			return entra.AccessToken{}, err
		}
		return entra.DecodeAccessToken(answer["access_token"])
	}
	claims, err := token("")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := token("&object_id=" + claims.ObjectID); err != nil || got.ObjectID != claims.ObjectID || got.ClientID != clientID {
		t.Errorf("got %+v, %v, want a token of %s", got, err, claims.ObjectID)
	}
	if got, err := token("&object_id=deadbeef-0000-4000-8000-00000000dead"); err == nil {
		t.Errorf("unknown object ID: got a token of %s", got.ObjectID)
	}
	getToken(ctx, t, pod, subject, "/azidentity")
}

// TestWithoutNativeSidecars checks that the application starts after the proxy even if the
// proxy is not a native sidecar.
func TestWithoutNativeSidecars(t *testing.T) {
	ctx := startTest(t)
	namespace, subject := appNamespace(ctx, t, map[string]string{webhookLabel: "no-native-sidecars"})
	pod := startPod(ctx, t, namespace, client(func(p *corev1.PodTemplateSpec) {
		p.Spec.InitContainers = nil // init containers run before the proxy, so they get no tokens
	}))
	if got := pod.Spec.Containers[0].Name; got != inject.ProxyName {
		t.Fatalf("the first container is %s, want %s", got, inject.ProxyName)
	}
	getToken(ctx, t, pod, subject, "/azidentity")
	started := map[string]metav1.Time{}
	for _, s := range pod.Status.ContainerStatuses {
		if s.State.Running == nil || s.RestartCount != 0 {
			t.Fatal(cluster.Describe(pod))
		}
		started[s.Name] = s.State.Running.StartedAt
	}
	if app, proxy := started["app"], started[inject.ProxyName]; app.Before(&proxy) {
		t.Errorf("the application started at %v, the proxy at %v", app, proxy)
	}
}

// TestInjectedByCommand checks that a Deployment that imds-migrate injected gets tokens, in
// a namespace without a webhook.
func TestInjectedByCommand(t *testing.T) {
	ctx := startTest(t)
	namespace, subject := appNamespace(ctx, t, map[string]string{webhookLabel: "none"})
	manifest, err := yaml.Marshal(&appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Name: "client", Namespace: namespace},
		Spec:       appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}, Template: client()},
	})
	if err != nil {
		t.Fatal(err)
	}
	inject := exec.CommandContext(ctx, os.Getenv(migrateVar), "inject", "--client-id="+clientID, "--tenant-id="+running.Entra.TenantID(),
		"--authority-host="+running.Entra.AuthorityHost(), "--proxy-image="+cluster.ProxyImage, "--proxy-init-image="+cluster.ProxyInitImage)
	inject.Stdin = bytes.NewReader(manifest)
	injected, err := inject.Output()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := cluster.Objects(injected)
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		if _, err := running.Apply(ctx, object, false); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		_ = running.Client.AppsV1().Deployments(namespace).Delete(context.Background(), "client", metav1.DeleteOptions{})
	})
	pod := podOf(ctx, t, namespace, "app=client", cluster.Running)
	checkInitToken(ctx, t, pod, subject)
	getToken(ctx, t, pod, subject, "/azidentity")
}
