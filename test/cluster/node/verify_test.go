package node

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
)

// migrate runs a command of imds-migrate with the rights of an administrator.
func migrate(ctx context.Context, t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	rest, config := running.REST, clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: rest.Host, CertificateAuthority: rest.CAFile, CertificateAuthorityData: rest.CAData}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{ClientCertificate: rest.CertFile, ClientCertificateData: rest.CertData, ClientKey: rest.KeyFile, ClientKeyData: rest.KeyData}
	config.Contexts["c"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "admin"}
	config.CurrentContext = "c"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, os.Getenv(migrateVar), append(args, "--kubeconfig="+file)...)
	out, err := cmd.CombinedOutput()
	if exit, exited := errors.AsType[*exec.ExitError](err); exited {
		return string(out), exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return string(out), 0
}

// TestVerify checks imds-migrate verify and report with pods that get tokens, that have no sidecar, and that Entra
// refuses.
func TestVerify(t *testing.T) {
	ctx := startTest(t)
	namespace, _ := appNamespace(ctx, t, nil)
	deployments := running.Client.AppsV1().Deployments(namespace)
	stranger := func(p *corev1.PodTemplateSpec) { p.Spec.ServiceAccountName = "stranger" }
	admin := func(p *corev1.PodTemplateSpec) { p.Annotations[inject.AdminPortAnnotation] = "8001" }
	unrequested := func(p *corev1.PodTemplateSpec) { delete(p.Annotations, inject.InjectProxyAnnotation) }
	if _, err := running.Client.CoreV1().ServiceAccounts(namespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
		Name: "stranger", Annotations: map[string]string{inject.ClientIDAnnotation: "66666666-7777-4888-9999-aaaaaaaaaaaa"},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]edit{"good": admin, "stranger": stranger, "plain": unrequested} {
		template := client(func(p *corev1.PodTemplateSpec) { p.Spec.InitContainers = nil; p.Labels["app"] = name })
		edit(&template)
		_, err := deployments.Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, Template: template,
		}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = deployments.Delete(context.Background(), name, metav1.DeleteOptions{}) })
	}
	for name, c := range map[string]struct {
		code int
		text string
	}{
		"good":     {0, "the sidecar is ready, the redirect was installed and proven, proxy check succeeds"},
		"stranger": {4, "proxy check ends with exit code 14: Entra refuses the token request: is there a federated credential?"},
		"plain":    {4, "the pod template does not request the sidecar"},
	} {
		pod := podOf(ctx, t, namespace, "app="+name, cluster.Running)
		output, code := migrate(ctx, t, "verify", "--namespace="+namespace, "deploy/"+name)
		if code != c.code || !strings.Contains(output, "deployment/"+name+" "+pod.Name+": "+c.text) || strings.Count(output, "\n") != 1 {
			t.Errorf("%s: exit code %d, %s", name, code, output)
		}
	}
	if output, code := migrate(ctx, t, "verify", "--namespace="+namespace); code != 4 || strings.Count(output, "\n") != 2 {
		t.Errorf("the whole namespace: exit code %d, %s", code, output)
	}
	checkReport(ctx, t, namespace)
}

// checkReport checks imds-migrate report before and after a client has asked: one sidecar is asked at its admin
// port, and the other one by a command.
func checkReport(ctx context.Context, t *testing.T, namespace string) {
	t.Helper()
	report := func(want ...string) {
		t.Helper()
		output, code := migrate(ctx, t, "report", "--namespace="+namespace)
		for _, text := range append(want, "2 of 2 pods") {
			if code != 3 || !strings.Contains(output, text) {
				t.Errorf("report: exit code %d, no %q in\n%s", code, text, output)
			}
		}
	}
	report("Cluster c: 2 workloads have the sidecar: 0 still needed, 2 where nobody has asked for long enough yet, 0 not known, 0 can go.")
	for _, name := range []string{"good", "stranger"} {
		pod := podOf(ctx, t, namespace, "app="+name, cluster.Running)
		if output, err := running.Exec(ctx, namespace, pod.Name, "app", "/ask", "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"); err != nil && name == "good" {
			t.Fatalf("%v, %s", err, output)
		}
	}
	report("Cluster c: 2 workloads have the sidecar: 2 still needed, ", "deployment/stranger: since the start AADSTS")
}
