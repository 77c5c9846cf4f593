package inject

import (
	"cmp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
)

// Config is the configuration that applies to all pods. [Config.AddFlags] defines a flag for each
// field, whose parser validates it. [Config.Validate] checks that required fields are set and
// that the fields are consistent.
type Config struct {
	// ProxyImage and ProxyInitImage are required.
	ProxyImage, ProxyInitImage string

	// TenantID is the tenant of service accounts without a tenant. If it is empty, their
	// pods get no tenant, with a warning.
	TenantID azure.Tenant

	// Cloud is the Azure cloud whose Entra is used. The default is AzurePublicCloud.
	Cloud string

	// AuthorityHost is the URL of Entra. The default is that of Cloud.
	AuthorityHost azure.AuthorityHost

	// Audience is the audience of the projected token. The default is [azure.Audience].
	Audience string

	// Redirect is the value of [RedirectAnnotation] for pods without it. The default is forward.
	Redirect string

	// PostStart makes the proxy the first of the pod's containers, with a postStart hook that
	// waits until it is ready, for Kubernetes before 1.29. Otherwise the proxy is a
	// native sidecar.
	PostStart bool

	// RecordValues makes a pod without the proxy record the values of its variables in an
	// annotation. A later pass, with another service account, then replaces them, and keeps
	// values that the pod's author has set. It is for the webhook, which is called again after
	// another webhook has changed the pod. Otherwise such a pod keeps the values, with a warning.
	RecordValues bool

	// LogLevel is the log level of both containers. The default is info.
	LogLevel string

	// ProxyResources and ProxyInitResources are the resource requests and limits of the
	// containers. The defaults are those of deploy/components.
	ProxyResources, ProxyInitResources *corev1.ResourceRequirements

	// ProxyInitBackend is the --backend of the init container. The default is auto.
	ProxyInitBackend string

	// HTTPSProxy is the URL of the HTTP proxy for the proxy's connections to Entra, its
	// HTTPS_PROXY. If it is empty, the proxy connects directly.
	HTTPSProxy string

	// NoProxy is the proxy's NO_PROXY: hosts, domains and CIDR blocks that it connects to
	// directly. It may be empty.
	NoProxy string

	// CAConfigMap has the certificate authorities that the proxy trusts for Entra in addition
	// to the system's. If it is zero, there are none.
	CAConfigMap ConfigMapKey

	// ProxyEnv is further variables of the proxy. They take precedence over those of the
	// fields above.
	ProxyEnv []corev1.EnvVar

	// TokenEndpoint configures a token endpoint for identity bindings. If it is zero, there are
	// only those of AKS, whose endpoint AKS's webhook sets in the pod.
	TokenEndpoint TokenEndpoint
}

// TokenEndpoint is the token endpoint of a cluster with identity bindings. Pods with its
// annotation exchange their federated tokens there instead of at Entra.
type TokenEndpoint struct {
	// AnnotationSuffix is the end of the annotation's name, after [TokenEndpointPrefix]. A
	// pod selects the endpoint with the value "true". Required.
	AnnotationSuffix string

	// Audience is the audience of the projected token in such pods. Required, and different
	// from Entra's.
	Audience string

	// TokenProxy is the URL of the endpoint, AZURE_KUBERNETES_TOKEN_PROXY. Required.
	TokenProxy azure.TokenProxy

	// SNIName is AZURE_KUBERNETES_SNI_NAME. If it is empty, the variable is not set.
	SNIName string

	// CAData is AZURE_KUBERNETES_CA_DATA, PEM. At most one of CAData, CAConfigMap and
	// ClusterTrustBundleSigner may be set. If none is, the system's certificate authorities
	// are trusted.
	CAData string

	// CAConfigMap is the name of a ConfigMap in the pod's namespace, with the key ca.crt.
	CAConfigMap string

	// ClusterTrustBundleSigner is the signer of ClusterTrustBundles.
	ClusterTrustBundleSigner string

	// ClusterTrustBundleLabels selects among the bundles of that signer. As in the
	// Kubernetes API, nil selects no bundle, and an empty selector selects all.
	ClusterTrustBundleLabels *metav1.LabelSelector
}

// Required returns an error that names the flags of all missing required fields, or nil.
func (c Config) Required() error {
	_, missing := split(setting{"proxy-image", c.ProxyImage}, setting{"proxy-init-image", c.ProxyInitImage})
	return flagenv.Join(flagenv.Required(missing, ", for example "+exampleImage), c.TokenEndpoint.required())
}

// Validate returns an error that names the flags of missing or inconsistent fields, or nil.
func (c Config) Validate() error {
	if err := c.Required(); err != nil {
		return err
	}
	if c.AuthorityHost == "" && c.Cloud != "" {
		if _, err := azure.ParseCloud(c.Cloud); err != nil {
			return flagenv.Errorf("cloud", "%v", err)
		}
	}
	return c.TokenEndpoint.validate(c.audience())
}

// setting is the value of a flag.
type setting struct{ flag, value string }

// split returns the flags with a value and those without.
func split(all ...setting) (set, missing []string) {
	for _, s := range all {
		if s.value == "" {
			missing = append(missing, s.flag)
		} else {
			set = append(set, s.flag)
		}
	}
	return set, missing
}

func (e TokenEndpoint) required() error {
	if e == (TokenEndpoint{}) {
		return nil
	}
	_, missing := split(setting{"token-endpoint-annotation-suffix", e.AnnotationSuffix},
		setting{"token-endpoint-audience", e.Audience}, setting{"token-endpoint-proxy", string(e.TokenProxy)})
	return flagenv.Required(missing, " with the other --token-endpoint flags")
}

func (e TokenEndpoint) validate(audience string) error {
	if e == (TokenEndpoint{}) {
		return nil
	}
	if strings.EqualFold(e.Audience, audience) || strings.EqualFold(e.Audience, azure.Audience) {
		return flagenv.Errorf("token-endpoint-audience", "%q: must be the audience of the token endpoint, which differs from Entra's", e.Audience)
	}
	return e.validateCA()
}

func (e TokenEndpoint) validateCA() error {
	set, _ := split(setting{"token-endpoint-ca-data", e.CAData}, setting{"token-endpoint-ca-config-map", e.CAConfigMap},
		setting{"token-endpoint-trust-bundle-signer", e.ClusterTrustBundleSigner})
	switch {
	case len(set) > 1:
		return &flagenv.Error{Flags: set, Reason: "must not be set together"}
	case e.ClusterTrustBundleLabels != nil && e.ClusterTrustBundleSigner == "":
		return flagenv.Required([]string{"token-endpoint-trust-bundle-signer"}, " with --token-endpoint-trust-bundle-labels")
	}
	return nil
}

func (c Config) authorityHost() azure.AuthorityHost {
	ofCloud, _ := azure.ParseCloud(c.Cloud)
	return cmp.Or(c.AuthorityHost, ofCloud, azure.PublicAuthorityHost)
}

func (c Config) audience() string { return cmp.Or(c.Audience, azure.Audience) }
