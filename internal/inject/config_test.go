package inject_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/inject"
)

func binding() inject.TokenEndpoint {
	return inject.TokenEndpoint{
		AnnotationSuffix: "identity-binding",
		Audience:         "api://AKSIdentityBinding",
		TokenProxy:       "https://token-proxy.example.test",
		SNIName:          "sni.example.test",
		CAConfigMap:      "token-proxy-ca",
	}
}

func TestValidate(t *testing.T) {
	bound := func(change func(*inject.TokenEndpoint)) func(*inject.Config) {
		return func(c *inject.Config) { c.TokenEndpoint = binding(); change(&c.TokenEndpoint) }
	}
	for name, c := range map[string]struct {
		change func(*inject.Config)
		want   string // "": valid
	}{
		"good":            {func(*inject.Config) {}, ""},
		"no image":        {func(c *inject.Config) { c.ProxyImage = "" }, "--proxy-image is required"},
		"no images":       {func(c *inject.Config) { c.ProxyImage, c.ProxyInitImage = "", "" }, "--proxy-image and --proxy-init-image are required"},
		"no tenant":       {func(c *inject.Config) { c.TenantID = "" }, ""},
		"cloud":           {func(c *inject.Config) { c.Cloud = "AzureMoonCloud" }, "--cloud "},
		"binding":         {bound(func(*inject.TokenEndpoint) {}), ""},
		"suffix":          {bound(func(e *inject.TokenEndpoint) { e.AnnotationSuffix = "" }), "--token-endpoint-annotation-suffix is required"},
		"audience":        {bound(func(e *inject.TokenEndpoint) { e.Audience = "" }), "--token-endpoint-audience is required"},
		"Entra's":         {bound(func(e *inject.TokenEndpoint) { e.Audience = "API://azureadtokenexchange" }), "--token-endpoint-audience "},
		"endpoint":        {bound(func(e *inject.TokenEndpoint) { e.TokenProxy = "" }), "--token-endpoint-proxy is required"},
		"two authorities": {bound(func(e *inject.TokenEndpoint) { e.CAData = "x" }), "--token-endpoint-ca-data and --token-endpoint-ca-config-map must not"},
		"labels alone":    {bound(func(e *inject.TokenEndpoint) { e.ClusterTrustBundleLabels = &metav1.LabelSelector{} }), "--token-endpoint-trust-bundle-signer is required"},
	} {
		cfg := config()
		c.change(&cfg)
		err := cfg.Validate()
		if (err == nil) != (c.want == "") || err != nil && (!strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestBinding checks that only pods with the annotation get the variables of the token endpoint.
func TestBinding(t *testing.T) {
	c := config()
	c.TokenEndpoint = binding()
	asks := inject.TokenEndpointPrefix + "identity-binding"
	for _, optIn := range []string{"", "false"} {
		pod := injected()
		if optIn != "" {
			annotate(asks, optIn)(pod)
		}
		pod = mutate(t, pod, account(), c)
		if got := value(&pod.Spec.Containers[0], "AZURE_KUBERNETES_TOKEN_PROXY"); got != "(unset)" {
			t.Errorf("%q: AZURE_KUBERNETES_TOKEN_PROXY=%s", optIn, got)
		}
	}
	pod := mutate(t, injected(annotate(asks, "true")), account(), c)
	const mount = "/var/run/secrets/azure/wi/"
	for _, container := range []*corev1.Container{find(pod.Spec.InitContainers, inject.ProxyName), &pod.Spec.Containers[0]} {
		for variable, want := range map[string]string{
			"AZURE_KUBERNETES_TOKEN_PROXY": "https://token-proxy.example.test",
			"AZURE_KUBERNETES_SNI_NAME":    "sni.example.test",
			"AZURE_KUBERNETES_CA_FILE":     mount + "ca-cert/ca.crt",
			"AZURE_KUBERNETES_CA_DATA":     "(unset)",
			"AZURE_FEDERATED_TOKEN_FILE":   mount + "token/azure-identity-token",
		} {
			if got := value(container, variable); got != want {
				t.Errorf("%s: %s=%s, want %s", container.Name, variable, got, want)
			}
		}
	}
	_, err := inject.Pod(injected(annotate(asks, "maybe")), account(), c)
	checkRefusal(t, err, `annotation azure.workload.identity/use-identity-binding: "maybe": must be "true" or "false"`)
}

// TestBindingVolume checks the projections of the certificate authorities, and that a volume of
// another webhook without them is replaced.
func TestBindingVolume(t *testing.T) {
	c := config()
	asking := injected(annotate(inject.TokenEndpointPrefix+"identity-binding", "true"))
	other := mutate(t, asking, account(), c) // as after a webhook without bindings

	c.TokenEndpoint = binding()
	pod := mutate(t, other, account(), c)
	checkValid(t, pod)
	sources := pod.Spec.Volumes[0].Projected.Sources
	if len(sources) != 2 || sources[0].ServiceAccountToken.Audience != "api://AKSIdentityBinding" || sources[1].ConfigMap.Name != "token-proxy-ca" {
		t.Errorf("sources %v", sources)
	}
	c.TokenEndpoint.CAConfigMap, c.TokenEndpoint.ClusterTrustBundleSigner = "", "example.test/signer"
	c.TokenEndpoint.ClusterTrustBundleLabels = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
	bundle := mutate(t, asking, account(), c).Spec.Volumes[0].Projected.Sources[1].ClusterTrustBundle
	if bundle == nil || *bundle.SignerName != "example.test/signer" || bundle.Path != "ca-cert/ca.crt" || *bundle.Optional || bundle.LabelSelector.MatchLabels["a"] != "b" {
		t.Errorf("cluster trust bundle %v", bundle)
	}
}
