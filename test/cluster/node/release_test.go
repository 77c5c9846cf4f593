package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
)

const (
	// released is the Helm release of the released chart, its namespace, and the name of its objects.
	released = "released"
	// previousChart is the chart of the commit before the first release, whose values have no test.
	previousChart = "testdata/imds-oidc-proxy-0.1.0.tgz"
	// registryPort is the port of the registry on 127.0.0.1, which containerd connects to without TLS.
	registryPort = "5005"
	// releaseTimeout limits TestRelease, which starts the webhook three times, from images that the
	// node has to pull.
	releaseTimeout = 6 * time.Minute
)

// TestRelease pushes a release to a registry on the loopback device, and does with it what a user
// does: installs the chart before, with the images of values.yaml; upgrades to the released chart,
// whose values name the images by digest; runs helm test, in which a pod gets a token by injection
// alone; rolls back; removes the chart.
func TestRelease(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), releaseTimeout)
	defer cancel()
	release := cluster.ReleaseIn(os.Getenv(releaseVar))
	version, err := release.Version()
	if err != nil {
		t.Fatal(err)
	}
	registry := startRegistry(ctx, t, release)
	pushed, err := release.Push(registry)
	if err != nil {
		t.Fatal(err)
	}
	namespace, err := running.NewNamespace(ctx, map[string]string{webhookLabel: released})
	if err != nil {
		t.Fatal(err)
	}
	subject := trust(namespace, released+"-test")
	authorities := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "entra"}, Data: map[string]string{"ca.crt": string(running.Entra.CAPEM())}}
	if _, err := running.Client.CoreV1().ConfigMaps(namespace).Create(ctx, authorities, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after a failure, so that the webhook is not called for other tests
		_ = running.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), released, metav1.DeleteOptions{})
	})
	settings := []string{"--set=replicas=1", "--set=fullnameOverride=" + released, "--set=authorityHost=" + running.Entra.AuthorityHost(), "--set=proxy.caConfigMap=entra",
		"--set=webhook.namespaceSelector[0].key=" + webhookLabel, "--set=webhook.namespaceSelector[0].operator=In", "--set=webhook.namespaceSelector[0].values[0]=" + released}
	helm := func(args ...string) string {
		t.Helper()
		out, err := running.Helm(append(args, "--timeout=3m")...)
		if err != nil {
			describePods(ctx, t, released, namespace)
			t.Fatal(err)
		}
		return out
	}
	documented := documentedCommands(t, strings.NewReplacer("<REGISTRY>", registry, "<TENANT_ID>", running.Entra.TenantID(), "<CLIENT_ID>", clientID, "<NAMESPACE>", namespace))

	previous, err := filepath.Abs(previousChart) // Helm runs in another directory
	if err != nil {
		t.Fatal(err)
	}
	helm(append([]string{"install", released, previous, "--namespace=" + released, "--create-namespace", "--wait", "--values=" + release.File("values.yaml"),
		"--set=images.registry=" + registry, "--set=tenantID=" + running.Entra.TenantID()}, settings...)...)
	before := injectedImages(ctx, t, namespace)

	helm(append(documented["upgrade --install"], append(settings, "--plain-http")...)...)
	images := injectedImages(ctx, t, namespace)
	if before != images {
		t.Errorf("values.yaml gives pods the images %s, and the chart's own values %s", before, images)
	}
	for image := range strings.FieldsSeq(images) {
		name, digest, _ := strings.Cut(image, "@")
		if !strings.Contains(pushed, name+":v"+version+"@"+digest) {
			t.Errorf("%s was not pushed:\n%s", image, pushed)
		}
	}

	helm(append(documented["upgrade"], "--plain-http")...)
	if out := helm(documented["test"]...); !strings.Contains(out, "Phase:          Succeeded") {
		t.Errorf("helm test prints\n%s", out)
	}
	exchanged := false
	for _, exchange := range running.Entra.Exchanges() {
		exchanged = exchanged || exchange.Subject == subject
	}
	if !exchanged {
		t.Errorf("Entra issued no token for %s", subject)
	}

	helm(documented["rollback"]...)
	helm("rollback", released, "1", "--namespace="+released, "--wait") // to the chart before
	if rolledBack := injectedImages(ctx, t, namespace); rolledBack != before {
		t.Errorf("after the rollback pods get the images %s, want %s", rolledBack, before)
	}
	helm(documented["uninstall"]...)
	checkRemoved(ctx, t, namespace)
}

// documentedCommands returns the arguments of the commands of Helm in docs/install.md, by their first
// words. They are for the release of this test.
func documentedCommands(t *testing.T, placeholders *strings.Replacer) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for _, line := range regexp.MustCompile(`(?m)^helm .*$`).FindAllString(string(text), -1) {
		args := strings.Fields(placeholders.Replace(line))[1:]
		for i := range args {
			if args[i] == "imds-oidc-proxy" { // the release and its namespace
				args[i] = released
			}
		}
		name := args[0]
		if args[1] == "--install" {
			name += " --install"
		}
		all[name] = args
	}
	for _, want := range []string{"upgrade --install", "upgrade", "test", "rollback", "uninstall"} {
		if all[want] == nil {
			t.Fatalf("docs/install.md has no command helm %s", want)
		}
	}
	return all
}

// describePods logs the status of the pods of both namespaces.
func describePods(ctx context.Context, t *testing.T, namespaces ...string) {
	t.Helper()
	for _, namespace := range namespaces {
		pods, err := running.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Log(err)
			continue
		}
		for _, pod := range pods.Items {
			t.Logf("%s/%s: %s", namespace, pod.Name, cluster.Describe(&pod))
		}
	}
}

// startRegistry starts a registry and returns its address with a path.
func startRegistry(ctx context.Context, t *testing.T, release cluster.Release) string {
	t.Helper()
	server := release.Registry(registryPort)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	address := net.JoinHostPort("127.0.0.1", registryPort)
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return address + "/team"
}

// injectedImages returns the images of the injected containers of a pod in the namespace.
func injectedImages(ctx context.Context, t *testing.T, namespace string) (images string) {
	t.Helper()
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		pod, err := dryRun(ctx, namespace)
		if err != nil {
			return err
		}
		if len(pod.Spec.InitContainers) != 2 {
			return fmt.Errorf("the pod has %d init containers, want those of injection", len(pod.Spec.InitContainers))
		}
		images = pod.Spec.InitContainers[0].Image + " " + pod.Spec.InitContainers[1].Image
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return images
}

// dryRun returns a pod as the API server would create it.
func dryRun(ctx context.Context, namespace string) (*corev1.Pod, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "try", Labels: map[string]string{inject.UseLabel: "true"}, Annotations: map[string]string{inject.InjectProxyAnnotation: "true", inject.ClientIDAnnotation: clientID}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: application}}},
	}
	return running.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

// checkRemoved checks that nothing of the chart is left, and that pods are no longer changed.
func checkRemoved(ctx context.Context, t *testing.T, namespace string) {
	t.Helper()
	pod, err := dryRun(ctx, namespace)
	if err != nil || len(pod.Spec.InitContainers) != 0 {
		t.Errorf("a pod after the removal: %v, %+v", err, pod)
	}
	client, get := running.Client, metav1.GetOptions{}
	_, configuration := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, released, get)
	_, role := client.RbacV1().ClusterRoles().Get(ctx, released, get)
	_, deployment := client.AppsV1().Deployments(released).Get(ctx, released, get)
	_, secret := client.CoreV1().Secrets(released).Get(ctx, released+"-cert", get)
	_, account := client.CoreV1().ServiceAccounts(namespace).Get(ctx, released+"-test", get)
	_, ask := client.CoreV1().Pods(namespace).Get(ctx, released+"-test", get)
	for _, err := range []error{configuration, role, deployment, secret, account, ask} {
		if !apierrors.IsNotFound(err) {
			t.Error(errors.Join(errors.New("an object of the chart is left"), err))
		}
	}
}
