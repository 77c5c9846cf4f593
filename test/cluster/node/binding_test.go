package node

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/azwi"
	"imds-oidc-proxy/test/kit/binding"
	"imds-oidc-proxy/test/kit/entra"
)

// bindingID is the client ID of the identity that only identity bindings use: Entra has no
// credential for a service account of the cluster.
const bindingID = "99999999-1111-4222-8333-444444444444"

// aks is AKS's part of a cluster with identity bindings: its webhook, and its token proxy at
// the node's address.
type aks struct {
	webhook    *cluster.Azwi
	tokenProxy *binding.Server
	endpoint   azwi.TokenEndpoint
}

// startAKS starts both. The token proxy asks the real API server for a TokenReview and a
// SubjectAccessReview.
func startAKS(t *testing.T) aks {
	t.Helper()
	a := aks{endpoint: azwi.AKS()}
	certificate, err := running.ServingCertificate("token-proxy", a.endpoint.SNIName, "kubernetes.default.svc")
	if err != nil {
		t.Fatal(err)
	}
	a.tokenProxy, err = binding.Start(binding.Config{
		Entra: running.Entra, Listen: net.JoinHostPort(cluster.NodeAddress, "0"), Certificate: certificate,
		ServerName: a.endpoint.SNIName, Path: "/identity-binding", Review: reviewToken, Allowed: mayUse,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.tokenProxy.Close() })
	a.endpoint.TokenProxy = a.tokenProxy.URL()
	if a.webhook, err = running.StartAzwi(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.webhook.Close() })
	return a
}

func reviewToken(ctx context.Context, token, audience string) (subject string, err error) {
	review, err := running.Client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{audience}}}, metav1.CreateOptions{})
	if err == nil && !review.Status.Authenticated {
		err = errors.New(review.Status.Error)
	}
	if err != nil {
		return "", err
	}
	return review.Status.User.Username, nil
}

func mayUse(ctx context.Context, subject, clientID string) (bool, error) {
	review, err := running.Client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: subject, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: binding.Verb, Group: binding.Group, Resource: clientID},
	}}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return review.Status.Allowed, nil
}

// install installs AKS's webhook for a namespace. Its configuration has the name.
func (a aks) install(ctx context.Context, t *testing.T, name, namespace string) {
	t.Helper()
	probe := podOfTemplate(client())
	_, err := a.webhook.Install(ctx, name, namespace, azwi.Webhook{NativeSidecar: true, TenantID: running.Entra.TenantID(), Endpoint: a.endpoint},
		admissionregistrationv1.IfNeededReinvocationPolicy, probe)
	t.Cleanup(func() { _ = a.webhook.Uninstall(name) })
	if err != nil {
		t.Fatal(err)
	}
}

func podOfTemplate(template corev1.PodTemplateSpec) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name = "client"
	return pod
}

// boundNamespace returns a namespace whose service account has the identity bindingID.
func boundNamespace(ctx context.Context, t *testing.T, labels map[string]string) (namespace, subject string) {
	t.Helper()
	namespace, err := running.NewNamespace(ctx, labels)
	if err != nil {
		t.Fatal(err)
	}
	_, err = running.Client.CoreV1().ServiceAccounts(namespace).Create(ctx, &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Annotations: map[string]string{inject.ClientIDAnnotation: bindingID}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return namespace, "system:serviceaccount:" + namespace + ":app"
}

// getBound runs a client, and checks that its token came through the token proxy.
func (a aks) getBound(ctx context.Context, t *testing.T, pod *corev1.Pod, subject, container string, program ...string) {
	t.Helper()
	output, err := running.Exec(ctx, pod.Namespace, pod.Name, container, program...)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Token       string
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(output), &answer); err != nil {
		t.Fatalf("%q printed %q: %v", program, output, err)
	}
	token, err := running.Entra.VerifyAccessToken(answer.Token + answer.AccessToken)
	if err != nil || token.ClientID != bindingID {
		t.Errorf("%q got a token for %s, %v; want one for %s", program, token.ClientID, err, bindingID)
	}
	want := binding.Request{ServerName: a.endpoint.SNIName, Path: "/identity-binding/" + running.Entra.TenantID() + "/oauth2/v2.0/token",
		Subject: subject, ClientID: bindingID, Status: http.StatusOK}
	if !slices.Contains(a.tokenProxy.Requests(), want) {
		t.Errorf("%q: the token proxy got %+v, want %+v", program, a.tokenProxy.Requests(), want)
	}
}

// bound adds the annotation for AKS's webhook, and a container with clients in Python. The init
// container would need a token before the test has granted the permission for it.
func bound(p *corev1.PodTemplateSpec) {
	p.Annotations[inject.IdentityBindingAnnotation] = "true"
	p.Spec.InitContainers = nil
	p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "python", Image: pyApplication, Command: []string{"/pause"}})
}

// odbc is the request of Microsoft's ODBC driver for SQL Server.
const odbc = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fdatabase.windows.net%2F"

// TestIdentityBinding checks that SDKs that know nothing of identity bindings get tokens
// through one, in both orders of the two webhooks, with the volume, the authorities and the
// token that the kubelet mounts. First the permission is missing: proxy check prints the
// objects that grant it, and they are applied as they are.
func TestIdentityBinding(t *testing.T) {
	a := startAKS(t)
	a.tokenProxy.Bind(entra.Application{ClientID: bindingID})
	for order, prefix := range map[string]string{"AKS's webhook first": "azure-wi-", "AKS's webhook last": "zz-azure-wi-"} {
		t.Run(order, func(t *testing.T) {
			ctx := startTest(t)
			namespace, subject := boundNamespace(ctx, t, nil)
			a.install(ctx, t, prefix+namespace, namespace)
			pod := startPod(ctx, t, namespace, client(bound))
			output, err := running.Exec(ctx, namespace, pod.Name, inject.ProxyName, "/proxy", "check")
			if err == nil || !strings.Contains(output+err.Error(), "does not let the service account use the identity") {
				t.Errorf("proxy check: %v: %s", err, output)
			}
			grant(ctx, t, output+err.Error())
			a.getBound(ctx, t, pod, subject, "app", "/azidentity", "--scope=https://storage.azure.com/.default")
			a.getBound(ctx, t, pod, subject, "app", "/adal", "resource=https://vault.azure.net")
			a.getBound(ctx, t, pod, subject, "python", "/pysdk", "/track1/track1.py", "resource=https://management.azure.com")
			a.getBound(ctx, t, pod, subject, "app", "/ask", odbc)
		})
	}
}

// grant applies the objects in the report of proxy check.
func grant(ctx context.Context, t *testing.T, report string) {
	t.Helper()
	_, command, _ := strings.Cut(report, "echo '")
	list, _, found := strings.Cut(command, "' | kubectl apply -f -")
	if !found {
		t.Fatalf("the report has no command: %s", report)
	}
	var objects struct{ Items []map[string]any }
	if err := json.Unmarshal([]byte(list), &objects); err != nil || len(objects.Items) != 2 {
		t.Fatalf("%v: %s", err, list)
	}
	for _, object := range objects.Items {
		if _, err := running.Apply(ctx, &unstructured.Unstructured{Object: object}, false); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIdentityBindingByCommand checks the same for a pod that imds-migrate injected, without
// our webhook: AKS's webhook adds what the injected proxy needs.
func TestIdentityBindingByCommand(t *testing.T) {
	ctx := startTest(t)
	a := startAKS(t)
	a.tokenProxy.Bind(entra.Application{ClientID: bindingID})
	namespace, subject := boundNamespace(ctx, t, map[string]string{webhookLabel: "none"})
	a.install(ctx, t, "azure-wi-"+namespace, namespace)
	pod := podOfTemplate(client(bound))
	pod.TypeMeta, pod.Namespace = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, namespace
	manifest, err := yaml.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(ctx, os.Getenv(migrateVar), "inject", "--client-id="+bindingID, "--tenant-id="+running.Entra.TenantID(),
		"--authority-host="+running.Entra.AuthorityHost(), "--proxy-image="+cluster.ProxyImage, "--proxy-init-image="+cluster.ProxyInitImage)
	command.Stdin = strings.NewReader(string(manifest))
	injected, err := command.Output()
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
	t.Cleanup(func() { deletePod(namespace, pod.Name) })
	started, err := running.WaitPod(ctx, namespace, pod.Name, cluster.Running)
	if err != nil {
		t.Fatal(err)
	}
	output, err := running.Exec(ctx, namespace, pod.Name, inject.ProxyName, "/proxy", "check")
	if err == nil {
		t.Fatalf("proxy check finds no missing permission: %s", output)
	}
	grant(ctx, t, output+err.Error())
	a.getBound(ctx, t, started, subject, "app", "/azidentity", "--scope=https://storage.azure.com/.default")
}
