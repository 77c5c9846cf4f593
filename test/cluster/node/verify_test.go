package node

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/report"
	"imds-oidc-proxy/test/cluster"
)

// writeKubeconfig writes a kubeconfig with the rights of an administrator.
func writeKubeconfig(t *testing.T, file string) {
	t.Helper()
	rest, config := running.REST, clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: rest.Host, CertificateAuthority: rest.CAFile, CertificateAuthorityData: rest.CAData}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{ClientCertificate: rest.CertFile, ClientCertificateData: rest.CertData, ClientKey: rest.KeyFile, ClientKeyData: rest.KeyData}
	config.Contexts["c"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "admin"}
	config.CurrentContext = "c"
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
}

// migrate runs a command of imds-migrate with the rights of an administrator.
func migrate(ctx context.Context, t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	writeKubeconfig(t, file)
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
// port, the other one by a command, and that of a Job that has ended by its log.
func checkReport(ctx context.Context, t *testing.T, namespace string) {
	t.Helper()
	workloads := func(pods int) map[string]report.Workload {
		t.Helper()
		output, code := migrate(ctx, t, "report", "--namespace="+namespace, "--output=json")
		r := new(report.Report)
		if err := json.Unmarshal([]byte(output), r); err != nil || code != 3 || r.Summary.PodsAsked != pods || len(r.NotAsked)+len(r.NotRead) > 0 {
			t.Fatalf("%v, exit code %d, %s", err, code, output)
		}
		all := map[string]report.Workload{}
		for _, w := range r.Workloads {
			all[w.Key()] = w
		}
		return all
	}
	for key, w := range workloads(2) {
		if w.Verdict != report.Waiting || w.CanGoFrom.IsZero() || len(w.Versions) != 1 {
			t.Errorf("before: %s: %+v", key, w)
		}
	}
	const unknown = "99999999-0000-4000-8000-000000000000"
	for _, name := range []string{"good", "stranger"} {
		pod := podOf(ctx, t, namespace, "app="+name, cluster.Running)
		const path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
		if output, err := running.Exec(ctx, namespace, pod.Name, "app", "/ask", path); err != nil && name == "good" {
			t.Fatalf("%v, %s", err, output)
		}
		if output, err := running.Exec(ctx, namespace, pod.Name, "app", "/ask", path+"&object_id="+unknown); err == nil {
			t.Fatalf("an unknown identity: got %s", output)
		}
	}
	completeJob(ctx, t, namespace)
	all := workloads(3)
	good, stranger, job := all["deployment/good"], all["deployment/stranger"], all["job/client"]
	if good.Verdict != report.Needed || good.Clients[0].Requests != 2 || good.Refused["identity_not_found"] != 1 || len(good.Faults) != 1 || good.Faults[0].Identity != unknown {
		t.Errorf("a refused identity: %+v", good)
	}
	i := slices.IndexFunc(stranger.Faults, func(f report.Fault) bool { return f.AADSTS != 0 })
	if stranger.Verdict != report.Needed || i < 0 || len(stranger.Failed) == 0 || !strings.Contains(stranger.Faults[i].Remedy, "az ") {
		t.Errorf("no federated credential: %+v", stranger)
	}
	if job.Verdict != report.Needed || job.Pods != 1 || len(job.Clients) != 1 || job.Clients[0].Name() != "go-azidentity 1.0.0" || job.Text != "go-azidentity 1.0.0: azidentity (Go) 1.3.0 or later" {
		t.Errorf("a Job that has ended: %+v", job)
	}
	if page, code := migrate(ctx, t, "report", "--namespace="+namespace, "--output=html"); code != 3 || !strings.Contains(page, unknown) || !strings.Contains(page, "3 of 3 pods") {
		t.Errorf("the page: exit code %d, %.2000s", code, page)
	}
}

// completeJob runs a Job whose containers get tokens, and waits until it has ended.
func completeJob(ctx context.Context, t *testing.T, namespace string) {
	t.Helper()
	template := client(func(p *corev1.PodTemplateSpec) {
		p.Spec.Containers[0].Command, p.Spec.RestartPolicy = nil, corev1.RestartPolicyNever
	})
	_, err := running.Client.BatchV1().Jobs(namespace).Create(ctx,
		&batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "client"}, Spec: batchv1.JobSpec{Template: template}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	podOf(ctx, t, namespace, "job-name=client", cluster.Succeeded)
	waitComplete(ctx, t, namespace, "client")
}
