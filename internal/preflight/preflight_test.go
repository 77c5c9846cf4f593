package preflight_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/preflight"
)

var now = time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)

// server is an API server in memory.
type server struct {
	// answers has the bodies of GET requests by path. Paths that are missing are not found.
	answers map[string]string
	// forbidden are paths that the person may not read.
	forbidden []string
	// admit is the admission of pods: it may change them.
	admit func(*corev1.Pod) error
	// denied are the verbs and resources that the person may not use.
	denied []string
	dryRun bool // all pods were created as dry runs
}

func (s *server) Get(_ context.Context, path string, _ url.Values) (io.ReadCloser, error) {
	if slices.Contains(s.forbidden, path) {
		return nil, apierrors.NewForbidden(schema.GroupResource{}, "", errors.New("no"))
	}
	body, found := s.answers[path]
	if !found {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, path)
	}
	return io.NopCloser(strings.NewReader(body)), nil
}

func (s *server) Create(_ context.Context, path string, query url.Values, object, answer any) error {
	switch object := object.(type) {
	case *authorizationv1.SelfSubjectAccessReview:
		a := object.Spec.ResourceAttributes
		answer.(*authorizationv1.SelfSubjectAccessReview).Status.Allowed = !slices.Contains(s.denied, a.Verb+" "+a.Resource)
		return nil
	case *corev1.Pod:
		s.dryRun = s.dryRun && query.Get("dryRun") == "All"
		pod := object.DeepCopy()
		err := s.admit(pod)
		*answer.(*corev1.Pod) = *pod
		return err
	}
	return fmt.Errorf("%s: unexpected", path)
}

// certificate returns an authority that is valid until a time.
func certificate(t *testing.T, until time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.AddDate(-1, 0, 0), NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) // base64, in quotes
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// issuer is a published issuer.
func issuer(t *testing.T, keys string) (address string, client *http.Client) {
	t.Helper()
	var s *httptest.Server
	s = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprintf(w, `{"issuer": "%s/", "jwks_uri": "%[1]s/keys"}`, s.URL)
		case "/keys":
			io.WriteString(w, keys)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL + "/", s.Client()
}

const rsaKeys = `{"keys": [{"kty": "RSA", "alg": "RS256"}]}`

// healthy is a cluster without a fault.
func healthy(t *testing.T) (*server, preflight.Config) {
	t.Helper()
	address, client := issuer(t, rsaKeys)
	webhook := `{"items": [{"metadata": {"name": "imds-oidc-proxy"}, "webhooks": [{"name": "pods.imds-oidc-proxy.webhook", "clientConfig": {"caBundle": ` + certificate(t, now.AddDate(1, 0, 0)) + `, "service": {"namespace": "proxy", "name": "webhook"}}}]}]}`
	s := &server{dryRun: true, admit: func(p *corev1.Pod) error {
		if p.Annotations[inject.InjectProxyAnnotation] == "true" {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: inject.ProxyName})
		}
		return nil
	}, answers: map[string]string{
		"/version": `{"gitVersion": "v1.35.2"}`, "/.well-known/openid-configuration": `{"issuer": "` + address + `"}`,
		"/apis":                      `{"groups": [{"name": "apps", "versions": [{"version": "v1"}]}, {"name": "admissionregistration.k8s.io", "versions": [{"version": "v1"}]}, {"name": "aadpodidentity.k8s.io", "versions": [{"version": "v1"}]}]}`,
		"/api/v1/nodes":              `{"items": [{"metadata": {"name": "b"}, "status": {"nodeInfo": {"kubeletVersion": "v1.35.0"}}}, {"metadata": {"name": "a"}, "status": {"nodeInfo": {"kubeletVersion": "v1.34.9"}}}]}`,
		"/api/v1/namespaces":         `{"items": [{"metadata": {"name": "shop"}}]}`,
		"/api/v1/serviceaccounts":    `{"items": [{"metadata": {"name": "web", "namespace": "shop", "annotations": {"azure.workload.identity/client-id": "11111111-1111-4111-8111-111111111111"}}}]}`,
		"/api/v1/pods":               `{"items": [` + pod("web-1", true) + `]}`,
		"/apis/apps/v1/deployments":  `{"items": [` + deployment("web") + `, ` + webhookDeployment + `]}`,
		"/apis/apps/v1/replicasets":  `{"items": [{"metadata": {"name": "web-5d4f", "namespace": "shop", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "controller": true}]}, "spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}}]}`,
		"/apis/apps/v1/statefulsets": `{"items": []}`, "/apis/apps/v1/daemonsets": `{"items": []}`,
		"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations": webhook,
		"/apis/discovery.k8s.io/v1/namespaces/proxy/endpointslices":           `{"items": [{"endpoints": [{"conditions": {"ready": true}}, {}]}]}`,
	}}
	return s, preflight.Config{HTTP: client, Now: now}
}

const webhookDeployment = `{"metadata": {"name": "webhook", "namespace": "proxy"}, "spec": {"template": {"spec": {"containers": [{"name": "webhook", "args": ["--proxy-image=registry.corp.test/proxy:v1", "--proxy-init-image=registry.corp.test/init@sha256:00"]}]}}}}`

func deployment(account string) string {
	return `{"metadata": {"name": "web", "namespace": "shop"}, "spec": {"template": {"metadata": {"labels": {"azure.workload.identity/use": "true"}, "annotations": {"azure.workload.identity/inject-proxy-sidecar": "true"}}, "spec": {"serviceAccountName": "` + account + `", "containers": [{"name": "c"}]}}}}`
}

func pod(name string, proxied bool) string {
	more := ""
	if proxied {
		more = `, {"name": "azwi-proxy", "image": "x"}`
	}
	return `{"metadata": {"name": "` + name + `", "namespace": "shop", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "controller": true}]}, "spec": {"containers": [{"name": "c"}` + more + `]}}`
}

// findings returns the results that are not ok, as STATUS GROUP: TEXT.
func findings(results []preflight.Result) []string {
	found := []string{}
	for _, r := range results {
		if r.Status != preflight.OK {
			found = append(found, fmt.Sprintf("%s %s: %s", r.Status, r.Group, r.Text))
		}
	}
	return found
}

func TestHealthy(t *testing.T) {
	s, config := healthy(t)
	results, err := preflight.Run(t.Context(), s, config)
	if err != nil || len(findings(results)) > 0 || preflight.ExitCode(results) != 0 || len(results) < 12 || !s.dryRun {
		t.Errorf("%v, %d results, %q, only dry runs: %t", err, len(results), findings(results), s.dryRun)
	}
}

func refuse(message string) func(*corev1.Pod) error {
	return func(p *corev1.Pod) error {
		return apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "x", errors.New(message))
	}
}

// TestFindings breaks one thing at a time.
func TestFindings(t *testing.T) {
	baseline := func(p *corev1.Pod) error {
		if p.Annotations[inject.RedirectAnnotation] == "none" {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: inject.ProxyName})
			return nil
		}
		return refuse(`violates PodSecurity "baseline:latest": non-default capabilities`)(p)
	}
	const mwc = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
	replace := func(path, old, new string) func(*server, *preflight.Config) {
		return func(s *server, _ *preflight.Config) {
			if !strings.Contains(s.answers[path], old) {
				t.Errorf("%s has no %q", path, old)
			}
			s.answers[path] = strings.Replace(s.answers[path], old, new, 1)
		}
	}
	admit := func(f func(*corev1.Pod) error) func(*server, *preflight.Config) {
		return func(s *server, _ *preflight.Config) { s.admit = f }
	}
	for name, c := range map[string]struct {
		change func(*server, *preflight.Config)
		want   string
		hint   string
		code   int
	}{
		"an old API server":   {replace("/version", "v1.35.2", "v1.26.9"), "fault cluster: API server v1.26.9 is older than 1.27", "use Kubernetes 1.29 or later", 4},
		"no native sidecars":  {replace("/version", "v1.35.2", "v1.28.1"), "warning cluster: API server v1.28.1 has no native sidecars", "set --native-sidecar=off; Jobs with the sidecar do not complete then", 3},
		"an old kubelet":      {replace("/api/v1/nodes", "v1.34.9", "v1.28.0"), "warning cluster: oldest kubelet, of node a, v1.28.0 has no native sidecars", "set --native-sidecar=off; Jobs with the sidecar do not complete then", 3},
		"nodes are forbidden": {func(s *server, _ *preflight.Config) { s.forbidden = []string{"/api/v1/nodes"} }, "skipped cluster: the versions of the kubelets: you may not list nodes", "", 0},
		"a kind is forbidden": {func(s *server, _ *preflight.Config) { s.forbidden = []string{"/apis/apps/v1/daemonsets"} }, "warning cluster: you may not list daemonsets.apps: what depends on them is not checked", "use the ClusterRole of docs/plan.md", 3},
		"aad-pod-identity": {func(s *server, _ *preflight.Config) {
			s.answers["/apis/aadpodidentity.k8s.io/v1/azureidentitybindings"] = `{"items": [{"metadata": {"name": "b", "namespace": "shop"}}]}`
		}, "note cluster: aad-pod-identity is installed, with 1 bindings: it does no harm beside the sidecar", "", 0},
		"a private issuer": {func(s *server, _ *preflight.Config) {
			s.answers["/.well-known/openid-configuration"] = `{"issuer": "https://kubernetes.default.svc"}`
		}, "fault issuer: the issuer https://kubernetes.default.svc is not public", "turn on the OIDC issuer: az aks update --enable-oidc-issuer", 4},
		"no issuer":              {func(s *server, _ *preflight.Config) { s.forbidden = []string{"/.well-known/openid-configuration"} }, "skipped issuer: the issuer is not known: you may not get /.well-known/openid-configuration", "ask for the ClusterRole system:service-account-issuer-discovery", 0},
		"no authority":           {replace(mwc, `"caBundle": "`, `"caBundle": "", "x": "`), "fault webhook: imds-oidc-proxy: its configuration has no certificate authority: the API server cannot verify it", "see the log of the webhook, or renew its certificate", 4},
		"an expired authority":   {func(s *server, c *preflight.Config) { c.Now = now.AddDate(2, 0, 0) }, "fault webhook: imds-oidc-proxy: its certificate authority has expired on 2027-11-29", "see the log of the webhook, or renew its certificate", 4},
		"an authority that ends": {func(s *server, c *preflight.Config) { c.Now = now.AddDate(1, 0, -13) }, "warning webhook: imds-oidc-proxy: its certificate authority expires on 2027-11-29", "see the log of the webhook, or renew its certificate", 3},
		"no endpoint":            {replace("/apis/discovery.k8s.io/v1/namespaces/proxy/endpointslices", `{"conditions": {"ready": true}}, {}`, `{"conditions": {"ready": false}}`), "fault webhook: service proxy/webhook has no ready endpoint", "look at the pods of the webhook: kubectl --namespace=proxy get pods", 4},
		"one endpoint":           {replace("/apis/discovery.k8s.io/v1/namespaces/proxy/endpointslices", `, {}`, ""), "warning webhook: service proxy/webhook has one ready endpoint", "run two replicas: pods are refused while the only one restarts", 3},
		"azwi's webhook":         {replace(mwc, "pods.imds-oidc-proxy.webhook", "mutation.azure-workload-identity.io"), "warning webhook: only azure-workload-identity's webhook is installed", "it injects its own proxy: install this project's webhook beside it, or use imds-migrate inject", 3},
		"no webhook":             {func(s *server, _ *preflight.Config) { s.answers[mwc] = `{"items": []}` }, "warning webhook: this project's webhook is not installed", "install it, or write the sidecar into manifests with imds-migrate inject", 3},
		"no webhook, before":     {func(s *server, c *preflight.Config) { s.answers[mwc] = `{"items": []}`; c.Pre = true }, "note webhook: this project's webhook is not installed yet", "install it, or write the sidecar into manifests with imds-migrate inject", 0},
		"an image of Docker Hub": {func(_ *server, c *preflight.Config) {
			c.Inject.ProxyImage, c.Inject.ProxyInitImage = "team/proxy:v1", "registry.corp.test/init:v1"
		}, "fault images: image of proxy: team/proxy:v1 names no registry: the nodes would pull it from Docker Hub", "write the registry, such as registry.example.test/team/proxy:v1", 4},
		"an image without a tag": {func(_ *server, c *preflight.Config) {
			c.Inject.ProxyImage, c.Inject.ProxyInitImage = "registry.corp.test/proxy:v1", "registry.corp.test:5000/init"
		}, "warning images: image of proxy-init: registry.corp.test:5000/init has no fixed tag: pods of one workload may run different versions", "use a version or a digest", 3},
		"an example image": {func(_ *server, c *preflight.Config) {
			c.Inject.ProxyImage, c.Inject.ProxyInitImage = "registry.example.test/proxy:v1", "registry.corp.test/init:v1"
		}, "fault images: image of proxy: registry.example.test/proxy:v1 is an example", "push the images to a registry of your own: README.md", 4},
		"no images":             {replace("/apis/apps/v1/deployments", `, `+webhookDeployment, ""), "skipped images: the images are not known", "set --proxy-image and --proxy-init-image", 0},
		"baseline":              {admit(baseline), `warning namespace shop: a pod with the redirect is refused: pods "x" is forbidden: violates PodSecurity "baseline:latest": non-default capabilities`, "the namespace enforces baseline, which refuses NET_ADMIN: let it enforce privileged; without a redirect (imds-oidc-proxy/redirect: none) a pod is accepted", 3},
		"a policy":              {admit(refuse(`admission webhook "validation.gatekeeper.sh" denied the request: [azurepolicy-k8sazurev3allowedcapabilities-0] no`)), `fault namespace shop: a pod with the sidecar is refused: pods "x" is forbidden: admission webhook "validation.gatekeeper.sh" denied the request: [azurepolicy-k8sazurev3allowedcapabilities-0] no`, "allow it in the parameters of this policy, or exclude the namespace", 4},
		"OpenShift":             {admit(refuse("unable to validate against any security context constraint: []")), `fault namespace shop: a pod with the sidecar is refused: pods "x" is forbidden: unable to validate against any security context constraint: []`, "create one SecurityContextConstraints that allows the whole pod", 4},
		"not injected":          {admit(func(*corev1.Pod) error { return nil }), "fault namespace shop: a pod that requests the sidecar is accepted without it: no webhook has changed it", "look at the namespace selector and the log of the webhook", 4},
		"no right to try":       {admit(refuse(`User "x" cannot create resource "pods" in API group ""`)), "skipped namespace shop: whether the API server accepts the sidecar: you may not create pods, not even as a dry run", "ask for the right to create pods: nothing is created", 0},
		"a broken admission":    {admit(func(*corev1.Pod) error { return apierrors.NewInternalError(errors.New("failed calling webhook")) }), "fault namespace shop: the dry run failed: Internal error occurred: failed calling webhook", "", 4},
		"no namespace":          {func(_ *server, c *preflight.Config) { c.Namespaces = []string{"gone"} }, "fault namespace gone: it does not exist", "create it, or correct --namespace", 4},
		"default":               {replace("/apis/apps/v1/deployments", `"serviceAccountName": "web", `, ""), "fault namespace shop: Deployment web uses the service account default", "give it a service account of its own", 4},
		"a missing account":     {replace("/apis/apps/v1/deployments", `"serviceAccountName": "web"`, `"serviceAccountName": "gone"`), "fault namespace shop: service account gone of Deployment web does not exist", "create it", 4},
		"no client ID":          {replace("/api/v1/serviceaccounts", "client-id", "other"), "warning namespace shop: service account web names no identity", "set the annotation azure.workload.identity/client-id, unless all requests name a client ID", 3},
		"a bad client ID":       {replace("/api/v1/serviceaccounts", "11111111-1111-4111-8111-111111111111", "web-identity"), `fault namespace shop: service account web: "web-identity": must be a GUID: the application (client) ID, not a name or a resource ID`, "correct the annotation azure.workload.identity/client-id", 4},
		"a bad tenant":          {replace("/api/v1/serviceaccounts", `"azure.workload.identity/client-id"`, `"azure.workload.identity/tenant-id": "a b", "azure.workload.identity/client-id"`), `fault namespace shop: service account web: "a b": must be a tenant's ID (a GUID) or its domain, such as tenant.onmicrosoft.com`, "correct the annotation azure.workload.identity/tenant-id", 4},
		"a pod without sidecar": {replace("/api/v1/pods", pod("web-1", true), pod("web-1", true)+", "+pod("web-2", false)), "fault namespace shop: Deployment web: 1 of 2 pods have no sidecar", "restart it: kubectl --namespace=shop rollout restart deployment web", 4},
		"no rights": {func(s *server, _ *preflight.Config) {
			s.denied = []string{"patch deployments", "create serviceaccounts"}
		}, "note namespace shop: you may not patch deployments, create serviceaccounts", "ask for the ClusterRole edit in this namespace, or send the changes to somebody who has it", 0},
	} {
		s, config := healthy(t)
		c.change(s, &config)
		results, err := preflight.Run(t.Context(), s, config)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		i := slices.IndexFunc(results, func(r preflight.Result) bool { return fmt.Sprintf("%s %s: %s", r.Status, r.Group, r.Text) == c.want })
		if i < 0 || results[i].Hint != c.hint || preflight.ExitCode(results) != c.code || len(findings(results)) > 2 {
			t.Errorf("%s: no %q with the hint %q, or exit code %d, want %d:\n%s", name, c.want, c.hint, preflight.ExitCode(results), c.code, strings.Join(findings(results), "\n"))
		}
	}
}

// TestIssuer checks what the issuer serves.
func TestIssuer(t *testing.T) {
	for name, c := range map[string]struct {
		keys   string
		change func(address string) string
		want   string
	}{
		"RSA":               {rsaKeys, func(a string) string { return a }, ""},
		"no RSA":            {`{"keys": [{"kty": "EC", "alg": "ES256"}]}`, func(a string) string { return a }, "fault issuer: the issuer has no key for RS256"},
		"no JSON":           {"<html>", func(a string) string { return a }, "warning issuer: the keys of the issuer cannot be read from here: ADDRESSkeys is not JSON"},
		"without the slash": {rsaKeys, func(a string) string { return strings.TrimSuffix(a, "/") }, `fault issuer: the discovery document has the issuer "ADDRESS", and tokens have "ADDRESS-"`},
		"another path":      {rsaKeys, func(a string) string { return a + "x/" }, "warning issuer: the discovery document of the issuer cannot be read from here: ADDRESSx/.well-known/openid-configuration answers 404 Not Found"},
	} {
		s, config := healthy(t)
		address, client := issuer(t, c.keys)
		config.HTTP = client
		s.answers["/.well-known/openid-configuration"] = `{"issuer": "` + c.change(address) + `"}`
		results, err := preflight.Run(t.Context(), s, config)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.ReplaceAll(strings.ReplaceAll(c.want, "ADDRESS-", strings.TrimSuffix(address, "/")), "ADDRESS", address)
		if got := strings.Join(findings(results), "\n"); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// TestNotRead checks that a cluster that cannot be read is an error.
func TestNotRead(t *testing.T) {
	s, config := healthy(t)
	s.forbidden = []string{"/api/v1/pods"}
	if results, err := preflight.Run(t.Context(), s, config); err == nil || results != nil || err.Error() != "cannot list pods: you may not list pods" {
		t.Errorf("got %v, %v", results, err)
	}
}
