package inject

import (
	"encoding/pem"
	"errors"
	"fmt"
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

// The groups of flags, for --help.
const (
	GroupRequired = "Required"
	groupEntra    = "Entra"
	groupInjected = "Injected containers"
	groupBindings = "Identity bindings"
)

// AddFlags defines a flag for each field except PostStart. The webhook and imds-migrate share
// these flags, so that the same flags have the same effect on a pod.
func (c *Config) AddFlags(set *flagenv.Set) {
	flags := set.FlagSet
	c.Cloud, c.Audience = "AzurePublicCloud", azure.Audience
	set.Group(GroupRequired)
	optional(flags, &c.ProxyImage, "proxy-image", parseImage, "`image` of the proxy, preferably with a digest (required)")
	optional(flags, &c.ProxyInitImage, "proxy-init-image", parseImage, "`image` of the init container that installs the redirect (required)")
	set.Group(groupEntra)
	optional(flags, &c.TenantID, "tenant-id", azure.ParseTenant, "Entra `tenant` of service accounts without the annotation "+TenantIDAnnotation)
	flagenv.Var(flags, &c.Cloud, "cloud", accepted(func(s string) bool { return s != "" }, "must be a cloud, such as AzurePublicCloud"),
		"`cloud` of Entra: AzurePublicCloud, AzureUSGovernmentCloud or AzureChinaCloud")
	optional(flags, &c.AuthorityHost, "authority-host", azure.ParseAuthorityHost, "`URL` of Entra, instead of the URL for --cloud")
	flags.StringVar(&c.Audience, "audience", c.Audience, "`audience` of the projected token")
	set.Group(groupInjected)
	optional(flags, &c.Redirect, "redirect", oneRedirect,
		"`mode` of pods without the annotation "+RedirectAnnotation+": forward, sealed, none, cni-forward or cni-sealed; empty means forward")
	optional(flags, &c.LogLevel, "proxy-log-level", parseLogLevel, "log `level` of injected containers: error, warn, info or debug; empty means info")
	optional(flags, &c.ProxyResources, "proxy-resources", parseResources, "resource requests and limits of injected proxies, in `JSON`, not YAML; empty means those of deploy/components")
	optional(flags, &c.ProxyInitResources, "proxy-init-resources", parseResources, "the same `JSON` for injected init containers")
	optional(flags, &c.ProxyInitBackend, "proxy-init-backend", flagenv.OneOf("auto", "native", "nft", backendLegacy),
		"`backend` with which injected init containers install the redirect: native, nft, legacy or auto; empty means auto")
	optional(flags, &c.HTTPSProxy, "proxy-https-proxy", azure.ParseHTTPProxy, "`URL` of the HTTP proxy through which injected proxies connect to Entra, their HTTPS_PROXY")
	optional(flags, &c.NoProxy, "proxy-no-proxy", parseNoProxy, "`hosts`, domains and CIDR blocks to which they connect directly, their NO_PROXY")
	optional(flags, &c.CAConfigMap, "proxy-ca-config-map", parseConfigMapKey,
		"`NAME` or NAME/KEY of a ConfigMap in the pod's namespace with the certificate authorities that injected proxies trust for Entra; the default key is "+caKey)
	optional(flags, &c.ProxyEnv, "proxy-env", parseEnv, "further variables of injected proxies, as an object in `JSON`")
	c.TokenEndpoint.addFlags(set)
}

func (e *TokenEndpoint) addFlags(set *flagenv.Set) {
	flags := set.FlagSet
	set.Group(groupBindings)
	optional(flags, &e.AnnotationSuffix, "token-endpoint-annotation-suffix", parseSuffix,
		"pods with the annotation "+TokenEndpointPrefix+"`SUFFIX`=true get their tokens from --token-endpoint-proxy; empty: none. The identity bindings of AKS need none of these flags")
	flags.StringVar(&e.Audience, "token-endpoint-audience", "", "`audience` of the projected token of these pods (required with the suffix)")
	optional(flags, &e.TokenProxy, "token-endpoint-proxy", azure.ParseTokenProxy, "`URL` of the token endpoint (required with the suffix)")
	flags.StringVar(&e.SNIName, "token-endpoint-sni-name", "", "TLS server `name` of the token endpoint")
	optional(flags, &e.CAData, "token-endpoint-ca-data", parseCertificates, "certificate authorities of the token endpoint, in `PEM`")
	optional(flags, &e.CAConfigMap, "token-endpoint-ca-config-map", parseConfigMap, "`name` of a ConfigMap in the pod's namespace with the authorities in ca.crt")
	flags.StringVar(&e.ClusterTrustBundleSigner, "token-endpoint-trust-bundle-signer", "", "`signer` of the ClusterTrustBundles with the authorities")
	optional(flags, &e.ClusterTrustBundleLabels, "token-endpoint-trust-bundle-labels", parseLabels, "label `selector` for that signer's bundles; * selects all")
}

// optional defines a flag whose empty value is the zero value, since the chart and other
// templates pass empty values.
func optional[T any](flags *pflag.FlagSet, target *T, name string, parse func(string) (T, error), usage string) {
	flagenv.Var(flags, target, name, flagenv.Optional(parse), usage)
}

const exampleImage = "registry.example.test/imds-oidc-proxy:v1.0.0"

// image is the pattern of an image's name: host and port, path, tag and digest. It is lax: it
// refuses only names that are invalid in all registries. A kubelet would report them as
// InvalidImageName, in a pod that has been admitted.
var image = regexp.MustCompile(`^([0-9A-Za-z][0-9A-Za-z.-]*(:[0-9]{1,5})?/)?[0-9a-z][0-9a-z._-]*(/[0-9a-z][0-9a-z._-]*)*(:[0-9A-Za-z_][0-9A-Za-z_.-]*)?(@[0-9A-Za-z]+:[0-9a-fA-F]+)?$`)

const maxImage = 512 // bytes

// parseImage parses the name of an image. It says what is wrong with a URL, which people paste
// from a browser.
func parseImage(s string) (string, error) {
	switch {
	case strings.Contains(s, "://"):
		return "", azure.Invalid(s, "must be an image without a scheme, such as "+exampleImage)
	case len(s) > maxImage || !image.MatchString(s):
		return "", azure.Invalid(s, "must be an image, such as "+exampleImage)
	}
	return s, nil
}

// accepted returns a parser that accepts the texts for which ok is true, and does not change
// them.
func accepted(ok func(string) bool, reason string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !ok(s) {
			return "", azure.Invalid(s, reason)
		}
		return s, nil
	}
}

var (
	parseSuffix = accepted(func(s string) bool { return len(validation.IsQualifiedName(TokenEndpointPrefix+s)) == 0 },
		"must be the end of an annotation's name after "+TokenEndpointPrefix+", such as identity-binding")
	parseConfigMap = accepted(func(s string) bool { return len(validation.IsDNS1123Subdomain(s)) == 0 },
		"must be the name of a ConfigMap")
	// parseLogLevel accepts the levels that both containers accept.
	parseLogLevel = flagenv.OneOf("error", "warn", "info", "debug")
)

// parseCertificates does not quote a refused value, which may be a private key.
func parseCertificates(s string) (string, error) {
	if block, _ := pem.Decode([]byte(s)); block == nil || block.Type != "CERTIFICATE" {
		return "", azure.Secret("must be certificates in PEM")
	}
	return s, nil
}

// parseLabels parses a label selector. "*" selects everything: in the syntax of selectors only
// an empty text does, and here an empty text means no selector.
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
	if !strings.HasPrefix(strings.TrimSpace(s), "{") { // null would mean no limits
		return nil, azure.Invalid(s, resourcesReason)
	}
	if len(s) > maxResources {
		return nil, azure.Invalid(s, fmt.Sprintf("must have at most %d bytes", maxResources))
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

// maxResources is the maximum length of resources in JSON. The time to parse a quantity is quadratic
// in its digits: a million digits take more than a second.
const maxResources = 4096

const resourcesReason = `must be JSON with requests and limits, such as {"limits": {"memory": "128Mi"}}`

// oneLine returns the text of an error in one line.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// wrongResources returns what is wrong with resources, or "". The API server checks this too,
// but its error would be about a field of an injected container, which the pod's author does
// not know.
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
			return "the limit of " + string(name) + " must be at least its request, " + request.String()
		}
	}
	return ""
}
