package inject

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// DefaultAuthorityHost is Entra in the public cloud.
	DefaultAuthorityHost = "https://login.microsoftonline.com/"

	// DefaultAudience is what Entra asks of a federated token.
	DefaultAudience = "api://AzureADTokenExchange"
)

// Config is what holds for all pods alike.
type Config struct {
	// ProxyImage and ProxyInitImage are needed.
	ProxyImage, ProxyInitImage string

	// TenantID is for service accounts that name none. Empty: such pods get no
	// tenant, with a warning.
	TenantID string

	// AuthorityHost is where Entra is. Empty: [DefaultAuthorityHost].
	AuthorityHost string

	// Audience is that of the projected token. Empty: [DefaultAudience].
	Audience string

	// PostStart makes the proxy the first of the pod's containers, with a postStart
	// hook that waits for it, for servers before 1.29. False: a native sidecar.
	PostStart bool

	// LogLevel is that of both containers. Empty: their own default, info.
	LogLevel string

	// ProxyResources and ProxyInitResources are what the containers ask for. Nil:
	// those of deploy/components.
	ProxyResources, ProxyInitResources *corev1.ResourceRequirements

	// TokenEndpoint is for identity bindings. Nil: there are none.
	TokenEndpoint *TokenEndpoint
}

// TokenEndpoint is where tokens are traded in clusters with identity bindings, in
// the place of Entra, for the pods that ask for it.
type TokenEndpoint struct {
	// AnnotationSuffix, after [TokenEndpointPrefix], is the annotation by which a pod
	// asks, with "true". Needed.
	AnnotationSuffix string

	// Audience of the projected token in such pods. Needed, and another than
	// Entra's.
	Audience string

	// TokenProxy is the endpoint, AZURE_KUBERNETES_TOKEN_PROXY. Needed.
	TokenProxy string

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

// Validate names the first field that cannot be right.
func (c Config) Validate() error {
	for _, image := range []struct{ field, value string }{{"ProxyImage", c.ProxyImage}, {"ProxyInitImage", c.ProxyInitImage}} {
		if err := checkImage(image.value); err != nil {
			return fmt.Errorf("%s %q: %w", image.field, image.value, err)
		}
	}
	if c.TenantID != "" && !isTenant(c.TenantID) {
		return fmt.Errorf("TenantID %q: say a tenant's ID or domain", c.TenantID)
	}
	if err := checkHTTPS(c.authorityHost()); err != nil {
		return fmt.Errorf("AuthorityHost %q: %w", c.AuthorityHost, err)
	}
	if c.LogLevel != "" && !slices.Contains(logLevels, c.LogLevel) {
		return fmt.Errorf("LogLevel %q: say one of %s", c.LogLevel, strings.Join(logLevels, ", "))
	}
	for _, r := range []struct {
		field string
		value *corev1.ResourceRequirements
	}{{"ProxyResources", c.ProxyResources}, {"ProxyInitResources", c.ProxyInitResources}} {
		if err := checkResources(r.value); err != nil {
			return fmt.Errorf("%s: %w", r.field, err)
		}
	}
	return c.TokenEndpoint.validate(c.audience())
}

func (e *TokenEndpoint) validate(audience string) error {
	if e == nil {
		return nil
	}
	name := TokenEndpointPrefix + e.AnnotationSuffix
	if e.AnnotationSuffix == "" || len(validation.IsQualifiedName(name)) > 0 {
		return fmt.Errorf("TokenEndpoint.AnnotationSuffix %q: %s is no name of an annotation; say a word such as identity-binding", e.AnnotationSuffix, name)
	}
	if e.Audience == "" || strings.EqualFold(e.Audience, audience) || strings.EqualFold(e.Audience, DefaultAudience) {
		return fmt.Errorf("TokenEndpoint.Audience %q: say the audience of the token endpoint, which is not Entra's", e.Audience)
	}
	if err := checkHTTPS(e.TokenProxy); err != nil {
		return fmt.Errorf("TokenEndpoint.TokenProxy %q: %w", e.TokenProxy, err)
	}
	return e.validateCA()
}

func (e *TokenEndpoint) validateCA() error {
	var set []string
	for _, s := range []struct{ field, value string }{
		{"TokenEndpoint.CAData", e.CAData},
		{"TokenEndpoint.CAConfigMap", e.CAConfigMap},
		{"TokenEndpoint.ClusterTrustBundleSigner", e.ClusterTrustBundleSigner},
	} {
		if s.value != "" {
			set = append(set, s.field)
		}
	}
	switch {
	case len(set) > 1:
		return fmt.Errorf("%s: say one of them", strings.Join(set, " and "))
	case e.ClusterTrustBundleLabels != nil && e.ClusterTrustBundleSigner == "":
		return errors.New("TokenEndpoint.ClusterTrustBundleLabels without TokenEndpoint.ClusterTrustBundleSigner: say whose bundles")
	case e.CAConfigMap != "" && len(validation.IsDNS1123Subdomain(e.CAConfigMap)) > 0:
		return fmt.Errorf("TokenEndpoint.CAConfigMap %q: no name of a config map", e.CAConfigMap)
	}
	if e.CAData != "" {
		if block, _ := pem.Decode([]byte(e.CAData)); block == nil || block.Type != "CERTIFICATE" {
			return errors.New("TokenEndpoint.CAData: say certificates in PEM")
		}
	}
	if e.ClusterTrustBundleLabels != nil {
		if _, err := metav1.LabelSelectorAsSelector(e.ClusterTrustBundleLabels); err != nil {
			return fmt.Errorf("TokenEndpoint.ClusterTrustBundleLabels: %w", err)
		}
	}
	return nil
}

func (c Config) authorityHost() string {
	if c.AuthorityHost == "" {
		return DefaultAuthorityHost
	}
	return c.AuthorityHost
}

func (c Config) audience() string {
	if c.Audience == "" {
		return DefaultAudience
	}
	return c.Audience
}

func checkHTTPS(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("say an https URL, without user, query or fragment")
	}
	return nil
}
