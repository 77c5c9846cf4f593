package preflight_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/preflight"
)

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
		if p.Annotations[inject.InjectProxyAnnotation] == "" {
			return nil
		}
		return apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "x", errors.New(message))
	}
}

// TestFindings breaks one thing at a time.
func TestFindings(t *testing.T) {
	baseline := func(p *corev1.Pod) error {
		if redirect := p.Annotations[inject.RedirectAnnotation]; redirect == "none" || strings.HasPrefix(redirect, "cni-") {
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
		"no images": {replace("/apis/apps/v1/deployments", `, `+webhookDeployment, ""), "skipped images: the images are not known", "set --proxy-image and --proxy-init-image", 0},
		"baseline":  {admit(baseline), `warning namespace shop: a pod with the redirect is refused: pods "x" is forbidden: violates PodSecurity "baseline:latest": non-default capabilities`, "the namespace enforces baseline, which refuses NET_ADMIN: let it enforce privileged; without a redirect (imds-oidc-proxy/redirect: none) a pod is accepted", 3},
		"baseline with the CNI plugin": {func(s *server, _ *preflight.Config) {
			s.answers["/apis/apps/v1/daemonsets"] = plugin(2)
			s.admit = baseline
		}, `warning namespace shop: a pod with the redirect is refused: pods "x" is forbidden: violates PodSecurity "baseline:latest": non-default capabilities`, "the namespace enforces baseline, which refuses NET_ADMIN: let it enforce privileged; with the CNI plugin's redirect (imds-oidc-proxy/redirect: cni-forward) a pod is accepted", 3},
		"the CNI plugin is not ready": {func(s *server, _ *preflight.Config) { s.answers["/apis/apps/v1/daemonsets"] = plugin(1) }, "fault CNI plugin: DaemonSet proxy/imds-oidc-proxy-cni is ready on 1 of 2 nodes: pods that ask for it do not start on the others", "look at its pods: kubectl --namespace=proxy get pods -o wide", 4},
		"no CNI plugin":               {replace("/apis/apps/v1/deployments", `"azure.workload.identity/inject-proxy-sidecar": "true"`, `"azure.workload.identity/inject-proxy-sidecar": "true", "imds-oidc-proxy/redirect": "cni-sealed"`), "fault namespace shop: Deployment web asks for a redirect by the CNI plugin, which is not installed", "install the plugin, or choose another redirect", 4},
		"an old container runtime": {func(s *server, _ *preflight.Config) {
			s.answers["/apis/apps/v1/daemonsets"] = plugin(2)
			s.answers["/api/v1/nodes"] = strings.Replace(s.answers["/api/v1/nodes"], "containerd://1.7.0", "containerd://1.4.9", 1)
		}, "fault CNI plugin: containerd 1.4.9 does not pass the annotations of pods to plugins, so no pod starts there: node b", "update these nodes to containerd 1.5.0 or later", 4},
		"an old CRI-O": {func(s *server, _ *preflight.Config) {
			s.answers["/apis/apps/v1/daemonsets"] = plugin(2)
			s.answers["/api/v1/nodes"] = strings.Replace(s.answers["/api/v1/nodes"], "containerd://1.7.0", "cri-o://1.28.9", 1)
		}, "fault CNI plugin: cri-o 1.28.9 does not pass the annotations of pods to plugins, so no pod starts there: node b", "update these nodes to cri-o 1.29.0 or later", 4},
		"another container runtime": {func(s *server, _ *preflight.Config) {
			s.answers["/apis/apps/v1/daemonsets"] = plugin(2)
			s.answers["/api/v1/nodes"] = strings.Replace(s.answers["/api/v1/nodes"], "containerd://1.7.0", "docker://20.1.0", 1)
		}, `warning CNI plugin: the plugin was not tried with container runtime "docker://20.1.0": node b`, "start a pod with the annotation there before you use the plugin", 3},
		"the CNI plugin on AKS": {func(s *server, _ *preflight.Config) {
			s.answers["/apis/apps/v1/daemonsets"] = plugin(2)
			s.answers["/api/v1/nodes"] = strings.Replace(s.answers["/api/v1/nodes"], `"name": "b"`, `"name": "b", "labels": {"kubernetes.azure.com/cluster": "MC_shop"}`, 1)
		}, "note CNI plugin: AKS does not support further CNI plugins, and sometimes writes its list of plugins again; the installer then adds the plugin again", "watch for pods that do not start", 0},
		"no right to install": {func(s *server, c *preflight.Config) {
			c.Pre, s.denied = true, []string{"create mutatingwebhookconfigurations"}
		}, "note cluster: you may not create mutatingwebhookconfigurations", "a cluster administrator has to install the webhook; without it, use imds-migrate inject", 0},
		"no right to try in a restricted namespace": {func(s *server, _ *preflight.Config) {
			s.answers["/api/v1/namespaces"] = `{"items": [{"metadata": {"name": "shop", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}]}`
			s.admit = refuse(`User "x" cannot create resource "pods" in API group ""`)
		}, "warning namespace shop: the namespace enforces restricted, which refuses NET_ADMIN", "use one of the redirects of docs/plan.md#imds130, or let the namespace enforce privileged", 3},
		"no right to try on OpenShift": {func(s *server, _ *preflight.Config) {
			s.answers["/apis"] = strings.Replace(s.answers["/apis"], `{"name": "apps"`, `{"name": "security.openshift.io", "versions": [{"version": "v1"}]}, {"name": "apps"`, 1)
			s.answers["/apis/security.openshift.io/v1/securitycontextconstraints"] = `{"items": [{"metadata": {"name": "restricted-v2"}}]}`
			s.admit = refuse(`User "x" cannot create resource "pods" in API group ""`)
		}, "warning namespace shop: OpenShift: restricted-v2 allows neither NET_ADMIN nor the users 0 and 1501", "create one SecurityContextConstraints that allows the whole pod", 3},
		"a policy":              {admit(refuse(`admission webhook "validation.gatekeeper.sh" denied the request: [azurepolicy-k8sazurev3allowedcapabilities-0] no`)), `fault namespace shop: a pod with the sidecar is refused: pods "x" is forbidden: admission webhook "validation.gatekeeper.sh" denied the request: [azurepolicy-k8sazurev3allowedcapabilities-0] no`, "allow it in the parameters of this policy, or exclude the namespace", 4},
		"another refusal":       {admit(func(*corev1.Pod) error { return apierrors.NewBadRequest("images must be signed") }), "skipped namespace shop: whether the API server accepts the sidecar: it refuses the check's pod without it too: images must be signed", "", 0},
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

// TestRuntimeOfManyNodes checks that nodes with the same container runtime are one result.
func TestRuntimeOfManyNodes(t *testing.T) {
	s, config := healthy(t)
	s.answers["/apis/apps/v1/daemonsets"] = plugin(1000)
	var nodes []string
	for i := range 1000 {
		runtime := "containerd://1.4.9"
		if i%2 == 1 {
			runtime = "containerd://1.4.8"
		}
		nodes = append(nodes, fmt.Sprintf(`{"metadata": {"name": "n%03d"}, "status": {"nodeInfo": {"kubeletVersion": "v1.35.0", "containerRuntimeVersion": %q}}}`, i, runtime))
	}
	s.answers["/api/v1/nodes"] = `{"items": [` + strings.Join(nodes, ", ") + `]}`
	results, err := preflight.Run(t.Context(), s, config)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range results {
		if strings.Contains(r.Text, "annotations of pods") {
			got = append(got, r.Text)
		}
	}
	want := []string{
		"containerd 1.4.8 does not pass the annotations of pods to plugins, so no pod starts there: nodes n001, n003, n005 and 497 more",
		"containerd 1.4.9 does not pass the annotations of pods to plugins, so no pod starts there: nodes n000, n002, n004 and 497 more",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
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
