package inject

import (
	"cmp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
)

// Config is what holds for all pods alike. [Config.AddFlags] parses each field;
// [Config.Validate] checks that all of them are there and go together.
type Config struct {
	// ProxyImage and ProxyInitImage are required.
	ProxyImage, ProxyInitImage string

	// TenantID is for service accounts that name none. Empty: such pods get no
	// tenant, with a warning.
	TenantID azure.Tenant

	// Cloud names the cloud of Entra. Empty: AzurePublicCloud.
	Cloud string

	// AuthorityHost is Entra. Empty: that of Cloud.
	AuthorityHost azure.AuthorityHost

	// Audience is that of the projected token. Empty: [azure.Audience].
	Audience string

	// PostStart makes the proxy the first of the pod's containers, with a postStart
	// hook that waits for it, for servers before 1.29. False: a native sidecar.
	PostStart bool

	// LogLevel is that of both containers. Empty: their own default, info.
	LogLevel string

	// ProxyResources and ProxyInitResources are what the containers ask for. Nil:
	// those of deploy/components.
	ProxyResources, ProxyInitResources *corev1.ResourceRequirements

	// TokenEndpoint is for identity bindings. Zero: there are none.
	TokenEndpoint TokenEndpoint
}

// TokenEndpoint is where tokens are traded in clusters with identity bindings, in
// the place of Entra, for the pods that ask for it.
type TokenEndpoint struct {
	// AnnotationSuffix, after [TokenEndpointPrefix], is the annotation by which a pod
	// asks, with "true". Required.
	AnnotationSuffix string

	// Audience of the projected token in such pods. Required, and another than
	// Entra's.
	Audience string

	// TokenProxy is the endpoint, AZURE_KUBERNETES_TOKEN_PROXY. Required.
	TokenProxy azure.TokenProxy

	// SNIName is AZURE_KUBERNETES_SNI_NAME. Empty: not set.
	SNIName string

	// CAData is AZURE_KUBERNETES_CA_DATA, PEM. At most one of CAData, CAConfigMap and
	// ClusterTrustBundleSigner may be set; with none, the system's are trusted.
	CAData string

	// CAConfigMap names a config map in the pod's namespace, with the key ca.crt.
	CAConfigMap string

	// ClusterTrustBundleSigner names the signer of cluster trust bundles.
	ClusterTrustBundleSigner string

	// ClusterTrustBundleLabels choose among the bundles of that signer. Nil: none are
	// chosen, which is the API server's reading of nil too; empty: all.
	ClusterTrustBundleLabels *metav1.LabelSelector
}

// Validate returns an error of the fields that are missing or do not go together, a
// [*flagenv.Error] that names their flags.
func (c Config) Validate() error {
	_, missing := split(setting{"proxy-image", c.ProxyImage}, setting{"proxy-init-image", c.ProxyInitImage})
	if err := flagenv.Required(missing, ", for example "+exampleImage); err != nil {
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

// split returns the flags that are set and those that are missing.
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

func (e TokenEndpoint) validate(audience string) error {
	if e == (TokenEndpoint{}) {
		return nil
	}
	_, missing := split(setting{"token-endpoint-annotation-suffix", e.AnnotationSuffix},
		setting{"token-endpoint-audience", e.Audience}, setting{"token-endpoint-proxy", string(e.TokenProxy)})
	if err := flagenv.Required(missing, " with identity bindings (the other --token-endpoint flags)"); err != nil {
		return err
	}
	if strings.EqualFold(e.Audience, audience) || strings.EqualFold(e.Audience, azure.Audience) {
		return flagenv.Errorf("token-endpoint-audience", "%q: must be the audience of the token endpoint, which is not that of Entra", e.Audience)
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
