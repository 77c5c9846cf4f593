package apiserver

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
)

// startOwnWebhook starts a webhook with other values of the chart. It returns the webhook
// and a namespace of it, once the API server calls the webhook there.
func startOwnWebhook(ctx context.Context, t *testing.T, name string, port int, values ...string) (*cluster.Process, string) {
	t.Helper()
	own, err := startWebhook(ctx, name, port, values...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := own.Stop(); err != nil && !errors.Is(err, cluster.ErrExited) {
			t.Error(err)
		}
		_ = running.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), name, metav1.DeleteOptions{})
	})
	namespace := appNamespace(ctx, t, ownWebhookLabel, name)
	waitForWebhook(ctx, t, namespace)
	return own, namespace
}

// waitForWebhook waits until a webhook changes the pods of the namespace.
func waitForWebhook(ctx context.Context, t *testing.T, namespace string) {
	t.Helper()
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		pod, err := running.Client.CoreV1().Pods(namespace).Create(ctx, newPod(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && len(pod.Spec.Containers[0].Env) == 0 {
			err = errors.New("the API server does not call the webhook yet")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestWithoutNativeSidecars tests the injection for servers or nodes that do not support
// native sidecars.
func TestWithoutNativeSidecars(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	_, namespace := startOwnWebhook(ctx, t, "no-native-sidecars", 9543, "nativeSidecar=off")
	const warning = "init containers get no tokens"
	pod := mustCreate(ctx, t, namespace, injected(), warning)
	if got, want := names(pod.Spec.InitContainers)+"; "+names(pod.Spec.Containers), "azwi-proxy-init migrate; azwi-proxy app"; got != want {
		t.Fatalf("containers %s, want %s", got, want)
	}
	proxy := container(t, pod, inject.ProxyName)
	if proxy.Lifecycle == nil || proxy.Lifecycle.PostStart == nil || proxy.RestartPolicy != nil {
		t.Errorf("the proxy has no postStart hook, or it has a restart policy: %+v", proxy)
	}
	checkSecondPass(ctx, t, namespace, pod, warning)
}

// TestMountedCertificate checks that a webhook with a mounted certificate works, and that
// the chart then gives it no Role: it can only read service accounts.
func TestMountedCertificate(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	authority, err := running.Authority()
	if err != nil {
		t.Fatal(err)
	}
	_, namespace := startOwnWebhook(ctx, t, "mounted", 9593, "certificates.mode=mounted", "certificates.secretName=mine", "certificates.caBundle="+authority)
	checkInjected(t, mustCreate(ctx, t, namespace, injected(), ""))
	roles, err := running.Client.RbacV1().Roles("mounted").List(ctx, metav1.ListOptions{})
	if err != nil || len(roles.Items) != 0 {
		t.Errorf("Roles %v, %v; want none", roles.Items, err)
	}
}

// TestIdentityBindings checks that pods with the annotation get tokens from the cluster's
// token endpoint, with another audience, and that other pods do not.
func TestIdentityBindings(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	const audience, endpoint = "api://bindings.example.test", "https://bindings.example.test"
	common := []string{"tokenEndpoint.annotationSuffix=identity-binding", "tokenEndpoint.audience=" + audience, "tokenEndpoint.proxy=" + endpoint, "tokenEndpoint.sniName=sni.example.test"}
	withBinding := annotate(inject.TokenEndpointPrefix+"identity-binding", "true")

	t.Run("ConfigMap", func(t *testing.T) {
		_, namespace := startOwnWebhook(ctx, t, "bindings-map", 9553, append(common, "tokenEndpoint.caConfigMap=bindings-ca")...)
		pod := mustCreate(ctx, t, namespace, injected(withBinding), "")
		checkBinding(t, pod, audience, endpoint)
		if other := mustCreate(ctx, t, namespace, injected(func(p *corev1.Pod) { p.Name = "without-binding" }), ""); len(tokenVolumes(other)) != 1 {
			t.Error("a pod without the annotation has no token for Entra")
		}
	})
	t.Run("ClusterTrustBundle", func(t *testing.T) {
		_, namespace := startOwnWebhook(ctx, t, "bindings-bundle", 9563, append(common, "tokenEndpoint.trustBundleSigner=example.test/bindings", "tokenEndpoint.trustBundleLabels=*")...)
		checkBinding(t, mustCreate(ctx, t, namespace, injected(withBinding), ""), audience, endpoint)
	})
}

// checkBinding checks the proxy of a pod with an identity binding: the endpoint, a mounted
// file with certificate authorities, and a token with the endpoint's audience.
func checkBinding(t *testing.T, pod *corev1.Pod, audience, endpoint string) {
	t.Helper()
	proxy := container(t, pod, inject.ProxyName)
	checkEnv(t, proxy, "AZURE_KUBERNETES_TOKEN_PROXY="+endpoint, "AZURE_KUBERNETES_SNI_NAME=sni.example.test")
	file, _ := env(proxy, "AZURE_KUBERNETES_CA_FILE")
	mounted := false
	for _, m := range proxy.VolumeMounts {
		mounted = mounted || strings.HasPrefix(file, m.MountPath+"/")
	}
	if !mounted {
		t.Errorf("nothing is mounted at AZURE_KUBERNETES_CA_FILE, %q: %+v", file, proxy.VolumeMounts)
	}
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == audience {
				return
			}
		}
	}
	t.Errorf("no volume has a token with audience %s: %+v", audience, pod.Spec.Volumes)
}

// TestWebhookDown checks the failure policies while the webhook is down. With Fail, the API
// server refuses labeled pods, because without injection they could get the node's
// identity. With Ignore, it admits them. It always admits pods without the label.
func TestWebhookDown(t *testing.T) {
	for policy, port := range map[string]int{"Fail": 9573, "Ignore": 9583} {
		t.Run(policy, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			own, namespace := startOwnWebhook(ctx, t, "down-"+strings.ToLower(policy), port, "webhook.failurePolicy="+policy)
			if err := own.Stop(); err != nil {
				t.Fatal(err)
			}
			_, _, err := create(ctx, t, namespace, injected())
			if policy == "Fail" && !apierrors.IsInternalError(err) || policy == "Ignore" && err != nil {
				t.Errorf("failure policy %s, labeled pod: %v", policy, err)
			}
			if _, _, err := create(ctx, t, namespace, injected(func(p *corev1.Pod) { p.Name = "plain"; delete(p.Labels, inject.UseLabel) })); err != nil {
				t.Errorf("a pod without the label: %v", err)
			}
		})
	}
}

// TestExcludedNamespaces checks that the webhook does not apply to kube-system and its own
// namespace, so that a cluster can start without it.
func TestExcludedNamespaces(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	waitAccount(ctx, t, metav1.NamespaceSystem)
	for _, namespace := range []string{metav1.NamespaceSystem, release} {
		pod := injected(podOfAccount("default"), func(p *corev1.Pod) {
			p.GenerateName, p.Name = "excluded-", ""
			restrict(p)
		})
		checkUnchanged(t, mustCreate(ctx, t, namespace, pod, ""))
	}
}

func waitAccount(ctx context.Context, t *testing.T, namespace string) {
	t.Helper()
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		_, err := running.Client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPermissions checks that the webhook's service account has no permissions that the
// webhook does not need. Other tests show that it has those that it needs.
func TestPermissions(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	const account = "imds-oidc-proxy-webhook"
	for _, c := range []struct {
		resource authorizationv1.ResourceAttributes
		want     bool
	}{
		{authorizationv1.ResourceAttributes{Verb: "list", Resource: "serviceaccounts"}, true},
		{authorizationv1.ResourceAttributes{Verb: "update", Resource: "secrets", Namespace: release, Name: account + "-cert"}, true},
		{authorizationv1.ResourceAttributes{Verb: "get", Resource: "secrets", Namespace: release, Name: "other"}, false},
		{authorizationv1.ResourceAttributes{Verb: "list", Resource: "secrets", Namespace: release}, false},
		{authorizationv1.ResourceAttributes{Verb: "list", Resource: "secrets"}, false},
		{authorizationv1.ResourceAttributes{Verb: "create", Resource: "serviceaccounts", Subresource: "token"}, false},
		{authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods"}, false},
		{authorizationv1.ResourceAttributes{Verb: "update", Group: "admissionregistration.k8s.io", Resource: "mutatingwebhookconfigurations", Name: "other"}, false},
	} {
		review, err := running.Client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{
				User: "system:serviceaccount:" + release + ":" + account, Groups: []string{"system:serviceaccounts", "system:authenticated"},
				ResourceAttributes: &c.resource,
			}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if review.Status.Allowed != c.want {
			t.Errorf("%+v: allowed %t, want %t", c.resource, review.Status.Allowed, c.want)
		}
	}
}

// TestControllers checks that a Deployment's pods, which have generated names, are
// injected. It also checks that the webhook's pods are admitted in their namespace, which
// enforces the Pod Security level restricted.
func TestControllers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	namespace, template := appNamespace(ctx, t), injected()
	template.Labels["app"] = "app"
	_, err := running.Client.AppsV1().Deployments(namespace).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "app"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "app"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: template.Labels, Annotations: template.Annotations}, Spec: template.Spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkInjected(t, &waitPods(ctx, t, namespace, "app=app", 1)[0])
	waitPods(ctx, t, release, "app.kubernetes.io/name=imds-oidc-proxy-webhook", 2)
}

func waitPods(ctx context.Context, t *testing.T, namespace, selector string, count int) []corev1.Pod {
	t.Helper()
	var pods []corev1.Pod
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		list, err := running.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return err
		}
		if pods = list.Items; len(pods) != count {
			return fmt.Errorf("%d pods match %s, want %d", len(pods), selector, count)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return pods
}

// TestRotatedCertificate checks that the webhook writes its certificate authority to the
// webhook configuration, also after the configuration was overwritten, and that its log
// contains no private key.
func TestRotatedCertificate(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	const name = "imds-oidc-proxy-webhook"
	configurations := running.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	configuration, err := configurations.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	authority := string(configuration.Webhooks[0].ClientConfig.CABundle)
	secret, err := running.Client.CoreV1().Secrets(release).Get(ctx, name+"-cert", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if authority == "" || authority != string(secret.Data["ca.crt"]) {
		t.Errorf("the webhook configuration has the authority %q, the Secret %q", authority, secret.Data["ca.crt"])
	}
	log, err := webhook.Log()
	if err != nil {
		t.Fatal(err)
	}
	if log == "" || strings.Contains(log, "PRIVATE KEY") {
		t.Error("the webhook's log is empty, or contains a private key")
	}
	// Overwrite the configuration, as an upgrade of the chart does.
	configuration.Webhooks[0].ClientConfig.CABundle = nil
	if _, err := configurations.Update(ctx, configuration, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	err = cluster.Wait(ctx, func(ctx context.Context) error {
		updated, err := configurations.Get(ctx, name, metav1.GetOptions{})
		if err == nil && string(updated.Webhooks[0].ClientConfig.CABundle) != authority {
			err = errors.New("the webhook has not restored the authority yet")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the webhook restored the authority after %v", time.Since(began).Round(time.Millisecond))
	namespace := appNamespace(ctx, t)
	waitForWebhook(ctx, t, namespace)
}
