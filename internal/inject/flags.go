package inject

import (
	"encoding/pem"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	kjson "sigs.k8s.io/json"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
)

// AddFlags defines a flag for each field but PostStart. The webhook and imds-migrate share
// them, so that the same text does the same to a pod in both.
func (c *Config) AddFlags(flags *pflag.FlagSet) {
	c.Cloud, c.Audience = "AzurePublicCloud", azure.Audience
	optional(flags, &c.ProxyImage, "proxy-image", parseImage, "`image` of the proxy, by digest where that is known (required)")
	optional(flags, &c.ProxyInitImage, "proxy-init-image", parseImage, "`image` that sets up the redirect (required)")
	optional(flags, &c.TenantID, "tenant-id", azure.ParseTenant, "Entra `tenant` of service accounts that name none")
	flagenv.Var(flags, &c.Cloud, "cloud", accepted(func(s string) bool { return s != "" }, "must name a cloud, such as AzurePublicCloud"),
		"AzurePublicCloud, AzureUSGovernmentCloud or AzureChinaCloud: where Entra is")
	optional(flags, &c.AuthorityHost, "authority-host", azure.ParseAuthorityHost, "`URL` of Entra, in place of that of --cloud")
	flags.StringVar(&c.Audience, "audience", c.Audience, "audience of the projected token")
	optional(flags, &c.LogLevel, "proxy-log-level", parseLogLevel, "log `level` of injected proxies; empty means their default")
	optional(flags, &c.ProxyResources, "proxy-resources", parseResources, "requests and limits of injected proxies, in `JSON`, not YAML; empty means those of deploy/components")
	optional(flags, &c.ProxyInitResources, "proxy-init-resources", parseResources, "the same `JSON` for the init container")
	c.TokenEndpoint.addFlags(flags)
}

func (e *TokenEndpoint) addFlags(flags *pflag.FlagSet) {
	optional(flags, &e.AnnotationSuffix, "token-endpoint-annotation-suffix", parseSuffix,
		"identity bindings: pods annotated "+TokenEndpointPrefix+"`SUFFIX`=true get their tokens from --token-endpoint-proxy; empty means there are none")
	flags.StringVar(&e.Audience, "token-endpoint-audience", "", "identity bindings: audience of the projected token")
	optional(flags, &e.TokenProxy, "token-endpoint-proxy", azure.ParseTokenProxy, "identity bindings: `URL` of the token endpoint")
	flags.StringVar(&e.SNIName, "token-endpoint-sni-name", "", "identity bindings: TLS server `name` of the token endpoint")
	optional(flags, &e.CAData, "token-endpoint-ca-data", parseCertificates, "identity bindings: certificate authorities of the token endpoint, in `PEM`")
	optional(flags, &e.CAConfigMap, "token-endpoint-ca-config-map", parseConfigMap, "identity bindings: ConfigMap of the pod's namespace with ca.crt")
	flags.StringVar(&e.ClusterTrustBundleSigner, "token-endpoint-trust-bundle-signer", "", "identity bindings: `signer` of the ClusterTrustBundles to trust")
	optional(flags, &e.ClusterTrustBundleLabels, "token-endpoint-trust-bundle-labels", parseLabels, "identity bindings: label `selector` among that signer's bundles; * means all")
}

// optional defines a flag whose empty value is the zero value: the chart and templates pass
// empty values.
func optional[T any](flags *pflag.FlagSet, target *T, name string, parse func(string) (T, error), usage string) {
	flagenv.Var(flags, target, name, flagenv.Optional(parse), usage)
}

const exampleImage = "registry.example.test/imds-oidc-proxy:v1.0.0"

// image is a loose check. It refuses what no registry takes.
var image = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._:/@-]{0,511}$`)

// accepted returns a parser that takes the texts for which ok is true, as they are.
func accepted(ok func(string) bool, reason string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !ok(s) {
			return "", azure.Invalid(s, reason)
		}
		return s, nil
	}
}

var (
	parseImage  = accepted(image.MatchString, "must be an image, such as "+exampleImage)
	parseSuffix = accepted(func(s string) bool { return len(validation.IsQualifiedName(TokenEndpointPrefix+s)) == 0 },
		"must be the end of an annotation's name after "+TokenEndpointPrefix+", such as identity-binding")
	parseConfigMap = accepted(func(s string) bool { return len(validation.IsDNS1123Subdomain(s)) == 0 },
		"must be the name of a ConfigMap")
	// parseLogLevel takes the levels that both containers know.
	parseLogLevel = flagenv.OneOf("error", "warn", "info", "debug")
)

// parseCertificates does not quote what it refuses: it may be a private key.
func parseCertificates(s string) (string, error) {
	if block, _ := pem.Decode([]byte(s)); block == nil || block.Type != "CERTIFICATE" {
		return "", azure.Secret("must be certificates in PEM")
	}
	return s, nil
}

// parseLabels reads a label selector. "*" selects everything; the syntax of selectors has
// no other form for that than an empty text, which is that of no selector.
func parseLabels(s string) (*metav1.LabelSelector, error) {
	if s == "*" {
		return &metav1.LabelSelector{}, nil
	}
	selector, err := metav1.ParseToLabelSelector(s)
	if err != nil {
		return nil, azure.Invalid(s, `must be a label selector, such as use=identity-binding, or "*" for all`)
	}
	return selector, nil
}

// parseResources parses the resources of a container, as the API server parses a manifest
// with strict field validation: it refuses unknown fields, fields in the wrong case and
// fields given twice. A misspelt limit would otherwise be no limit.
func parseResources(s string) (*corev1.ResourceRequirements, error) {
	if !strings.HasPrefix(strings.TrimSpace(s), "{") { // null would be no limits either
		return nil, azure.Invalid(s, resourcesReason)
	}
	r := new(corev1.ResourceRequirements)
	strict, err := kjson.UnmarshalStrict([]byte(s), r)
	if err := errors.Join(append(strict, err)...); err != nil {
		return nil, azure.Invalid(s, resourcesReason+": "+oneLine(err))
	}
	if wrong := wrongResources(r); wrong != "" {
		return nil, azure.Invalid(s, wrong)
	}
	return r, nil
}

const resourcesReason = `must be JSON with requests and limits, such as {"limits": {"memory": "128Mi"}}`

// oneLine keeps the error of a parser within one line.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// wrongResources returns what the API server would say of a field that the pod's
// author never wrote. Empty: nothing.
func wrongResources(r *corev1.ResourceRequirements) string {
	if len(r.Claims) > 0 {
		return "must have requests and limits only, no claims"
	}
	for _, list := range []corev1.ResourceList{r.Requests, r.Limits} {
		for name, quantity := range list {
			if !slices.Contains([]corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}, name) {
				return "must be cpu, memory or ephemeral-storage, not " + string(name)
			}
			if quantity.Sign() < 0 {
				return string(name) + " must not be negative"
			}
		}
	}
	for name, limit := range r.Limits {
		if request, ok := r.Requests[name]; ok && request.Cmp(limit) > 0 {
			return string(name) + " must have a limit that is no less than the request of " + request.String()
		}
	}
	return ""
}
