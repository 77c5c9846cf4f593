package inject

import (
	"slices"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/cnirequest"
	"imds-oidc-proxy/internal/flagenv"
)

// The label, annotations and container names of azure-workload-identity (v1.6.0), which this
// package uses too.
const (
	// UseLabel enables injection for a pod, with the value "true".
	UseLabel = "azure.workload.identity/use"

	ClientIDAnnotation        = "azure.workload.identity/client-id"
	TenantIDAnnotation        = "azure.workload.identity/tenant-id"
	TokenExpirationAnnotation = "azure.workload.identity/service-account-token-expiration"
	SkipContainersAnnotation  = "azure.workload.identity/skip-containers"
	InjectProxyAnnotation     = "azure.workload.identity/inject-proxy-sidecar"
	ProxyPortAnnotation       = "azure.workload.identity/proxy-sidecar-port"

	// TokenEndpointPrefix is the start of the name of the annotation that selects identity
	// bindings for a pod. [TokenEndpoint.AnnotationSuffix] is the rest of the name.
	TokenEndpointPrefix = "azure.workload.identity/use-"

	// IdentityBindingAnnotation selects AKS's identity bindings for a pod. AKS's webhook reads
	// it, without any configuration here; see [plan.locateBinding].
	IdentityBindingAnnotation = TokenEndpointPrefix + "identity-binding"

	// ProxyName and ProxyInitName are the names of the injected containers.
	ProxyName     = "azwi-proxy"
	ProxyInitName = "azwi-proxy-init"
)

// Annotations that azure-workload-identity does not have.
const (
	RedirectAnnotation           = "imds-oidc-proxy/redirect"
	AppServiceAnnotation         = "imds-oidc-proxy/app-service"
	IdentitiesAnnotation         = "imds-oidc-proxy/identities"
	PrefetchAnnotation           = "imds-oidc-proxy/prefetch"
	AllowedClientIDsAnnotation   = "imds-oidc-proxy/allowed-client-ids"
	LogLevelAnnotation           = "imds-oidc-proxy/log-level"
	AdminPortAnnotation          = "imds-oidc-proxy/admin-port"
	ProxyImageAnnotation         = "imds-oidc-proxy/proxy-image"
	ProxyInitImageAnnotation     = "imds-oidc-proxy/proxy-init-image"
	ProxyResourcesAnnotation     = "imds-oidc-proxy/proxy-resources"
	ProxyInitResourcesAnnotation = "imds-oidc-proxy/proxy-init-resources"
	HTTPSProxyAnnotation         = "imds-oidc-proxy/https-proxy"
	NoProxyAnnotation            = "imds-oidc-proxy/no-proxy"
	CAConfigMapAnnotation        = "imds-oidc-proxy/ca-config-map"
	ProxyEnvAnnotation           = "imds-oidc-proxy/proxy-env"
	InstanceMetadataAnnotation   = "imds-oidc-proxy/instance-metadata"
	CNIValidatorAnnotation       = "imds-oidc-proxy/cni-validator"
)

// Annotation describes a label or an annotation of a pod or a service account.
type Annotation struct {
	// Name is the full name. The name of the annotation for identity bindings ends in SUFFIX,
	// in place of the configured suffix.
	Name string
	// On is the object that can have the annotation: pod, service account, or both. If both
	// have it, the pod's annotation takes precedence. For a label it is "pod, as a label".
	On string
	// Values are the valid values.
	Values string
	// Default is the default value, or "" if there is none.
	Default string
	// Effect describes the effect in one sentence.
	Effect string

	// read parses the value into the settings. Its error quotes the value. It is nil for
	// UseLabel, which [Skipped] reads, and for IdentityBindingAnnotation and
	// TokenEndpointPrefix, which readTokenEndpoint reads.
	read func(s *settings, value string) error
	// proxy is true if the annotation has an effect only where the proxy is injected.
	proxy bool
}

const (
	onPod     = "pod"
	onAccount = "service account"
	onBoth    = "pod, service account"
	onLabel   = "pod, as a label"
)

// Annotations returns all labels and annotations that this package reads, in the order of the
// documentation.
func Annotations() []Annotation { return slices.Clone(annotations) }

var annotations = []Annotation{
	{Name: UseLabel, On: onLabel, Values: `"true"`,
		Effect: "enables injection; without this label the annotations have no effect"},
	{Name: ClientIDAnnotation, On: onAccount, Values: "a client ID",
		Effect: "`AZURE_CLIENT_ID`: the identity for requests without a client ID", read: readClientID},
	{Name: TenantIDAnnotation, On: onAccount, Values: "a tenant's ID or domain", Default: "as configured",
		Effect: "`AZURE_TENANT_ID`", read: readTenantID},
	{Name: TokenExpirationAnnotation, On: onBoth, Values: "3600 to 86400, in seconds", Default: "3600",
		Effect: "validity of the projected token; the pod's annotation takes precedence", read: readExpiration},
	{Name: SkipContainersAnnotation, On: onPod, Values: "names, separated by semicolons",
		Effect: "these containers and init containers get neither the variables nor the token", read: readSkip},
	{Name: InjectProxyAnnotation, On: onPod, Values: `"true" or "false"`, Default: `"false"`,
		Effect: "`\"true\"` injects the redirect and the proxy", read: readInject},
	{Name: ProxyPortAnnotation, On: onPod, Values: "1 to 65535", Default: "8000",
		Effect: "port of the proxy, on 127.0.0.1", read: readPort, proxy: true},
	{Name: IdentityBindingAnnotation, On: onPod, Values: `"true" or "false"`, Default: `"false"`,
		Effect: "`\"true\"`: the pod gets its tokens by an [identity binding](identity-bindings.md) of AKS, from the token proxy that AKS's webhook sets in the pod"},
	{Name: TokenEndpointPrefix + "SUFFIX", On: onPod, Values: `"true" or "false"`, Default: `"false"`,
		Effect: "`\"true\"`: the pod gets its tokens from another token endpoint of the cluster; SUFFIX and the endpoint are [configured](identity-bindings.md#without-akss-webhook)"},
	{Name: RedirectAnnotation, On: onPod, Values: "`forward`, `sealed`, `none`, `cni-forward` or `cni-sealed`", Default: "as configured, else `forward`",
		Effect: "`forward` redirects the metadata address and forwards instance metadata; `sealed` forwards nothing, and no process in the pod reaches the address; `none` injects no init container and sets `AZURE_POD_IDENTITY_AUTHORITY_HOST` in the application's containers instead; `cni-forward` and `cni-sealed` are `forward` and `sealed` by the node's CNI plugin, and the init container needs no privilege",
		read:   readRedirect, proxy: true},
	{Name: CNIValidatorAnnotation, On: onPod, Values: `"true" or "false"`, Default: `"true"`,
		Effect: "`\"false\"`, with `cni-forward` or `cni-sealed`: there is no init container, and `azwi-proxy` proves the redirect when it starts. The pod starts [faster](injection.md#what-injection-costs)", read: readCNIValidator, proxy: true},
	{Name: AppServiceAnnotation, On: onPod, Values: `"true" or "false"`, Default: "`\"true\"` with `redirect: none`, else `\"false\"`",
		Effect: "`\"true\"` sets `IDENTITY_ENDPOINT`, `IDENTITY_HEADER`, `MSI_ENDPOINT` and `MSI_SECRET` in the application's containers, so that most clients request tokens from the proxy in the protocol of App Service, which needs no redirect; and `PROXY_APP_SERVICE_HEADER` in `azwi-proxy`. The secret is the pod's UID",
		read:   readAppService, proxy: true},
	{Name: IdentitiesAnnotation, On: onPod, Values: "SELECTOR=CLIENT_ID, separated by commas",
		Effect: "`PROXY_IDENTITY`: requests by this object ID or ARM resource ID get this client ID's token", read: readIdentities, proxy: true},
	{Name: PrefetchAnnotation, On: onPod, Values: "resources, separated by commas",
		Effect: "`PROXY_PREFETCH`: tokens for these resources are fetched before the first request", read: readPrefetch, proxy: true},
	{Name: AllowedClientIDsAnnotation, On: onPod, Values: "client IDs, separated by commas", Default: "any",
		Effect: "`PROXY_ALLOWED_CLIENT_IDS`: requests for other client IDs are refused", read: readAllowed, proxy: true},
	{Name: LogLevelAnnotation, On: onPod, Values: "`error`, `warn`, `info` or `debug`", Default: "as configured, else `info`",
		Effect: "`PROXY_LOG_LEVEL` of both containers", read: readLogLevel, proxy: true},
	{Name: AdminPortAnnotation, On: onPod, Values: "1 to 65535", Default: "none",
		Effect: "`PROXY_ADMIN_ADDRESS`: serves health and metrics at this port of the pod's address, and adds a liveness probe and the label that the PodMonitor selects", read: readAdminPort, proxy: true},
	{Name: ProxyImageAnnotation, On: onPod, Values: "an image", Default: "as configured",
		Effect: "the image of `azwi-proxy`", read: readProxyImage, proxy: true},
	{Name: ProxyInitImageAnnotation, On: onPod, Values: "an image", Default: "as configured",
		Effect: "the image of `azwi-proxy-init`", read: readProxyInitImage, proxy: true},
	{Name: ProxyResourcesAnnotation, On: onPod, Values: "JSON such as `{\"limits\": {\"memory\": \"128Mi\"}}`", Default: "as configured, else 5m CPU, 16Mi to 64Mi of memory",
		Effect: "the resources of `azwi-proxy`; they replace the default as a whole", read: readProxyResources, proxy: true},
	{Name: ProxyInitResourcesAnnotation, On: onPod, Values: "JSON, as above", Default: "as configured, else 5m CPU, 16Mi to 64Mi of memory",
		Effect: "the resources of `azwi-proxy-init`; they replace the default as a whole", read: readProxyInitResources, proxy: true},
	{Name: HTTPSProxyAnnotation, On: onPod, Values: "a URL such as `http://proxy.example.test:3128`; empty for none", Default: "as configured",
		Effect: "`HTTPS_PROXY` of `azwi-proxy`: the HTTP proxy for its connections to Entra", read: readHTTPSProxy, proxy: true},
	{Name: NoProxyAnnotation, On: onPod, Values: "hosts, domains and CIDR blocks, separated by commas", Default: "as configured",
		Effect: "`NO_PROXY` of `azwi-proxy`", read: readNoProxy, proxy: true},
	{Name: CAConfigMapAnnotation, On: onPod, Values: "NAME or NAME/KEY of a ConfigMap; empty for none", Default: "as configured; the key `ca.crt`",
		Effect: "`PROXY_CA_FILE` of `azwi-proxy`: it trusts these certificate authorities for Entra in addition to the system's, for example those of a proxy that inspects TLS", read: readCAConfigMap, proxy: true},
	{Name: ProxyEnvAnnotation, On: onPod, Values: "JSON such as `{\"PROXY_LOG_FORMAT\": \"console\"}`", Default: "as configured",
		Effect: "further variables of `azwi-proxy`; they replace the default as a whole", read: readProxyEnv, proxy: true},
	{Name: InstanceMetadataAnnotation, On: onPod, Values: "NAME or NAME/KEY of a ConfigMap", Default: "none; the key `instance.json`",
		Effect: "`PROXY_INSTANCE_METADATA` of `azwi-proxy`: requests for instance metadata are answered from this document, with the name of the node added, and never by the node", read: readInstance, proxy: true},
	{Name: AddedAnnotation, On: onPod, Values: "written by imds-migrate", Default: "none",
		Effect: "which label and annotations `imds-migrate inject` has added, with `--all` or `--identity-file`, for `uninject`"},
}

// injectedAnnotation has the values of [Config.RecordValues]. It is not a setting.
const injectedAnnotation = ownPrefix + "injected"

// IsProxyAnnotation reports whether an annotation of a pod is for the proxy alone: without the proxy, it
// has no effect.
func IsProxyAnnotation(name string) bool {
	return name == InjectProxyAnnotation || name == ProxyPortAnnotation || strings.HasPrefix(name, ownPrefix)
}

// isWritten reports whether a pass of [Pod] writes the annotation, which is not a setting.
func isWritten(name string) bool {
	return name == injectedAnnotation || name == cnirequest.Annotation
}

// ownPrefix is the prefix of the annotations that only this project uses.
const ownPrefix = "imds-oidc-proxy/"

// readSettings returns the settings for a pod: the configuration, changed by the annotations of
// the pod and its service account.
func readSettings(pod *corev1.Pod, account *corev1.ServiceAccount, config Config) (*settings, error) {
	s := defaults(config)
	for _, a := range annotations {
		// Without the proxy, the annotations of the proxy have no effect, so an invalid value is
		// no reason to refuse the pod. [annotations] has InjectProxyAnnotation before them.
		if a.read == nil || a.proxy && !s.inject {
			continue
		}
		value, where, given := a.value(pod, account)
		if !given {
			continue
		}
		if err := a.read(s, value); err != nil {
			return nil, refuse(where, "%v", err)
		}
	}
	if err := readTokenEndpoint(s, pod, config.TokenEndpoint); err != nil {
		return nil, err
	}
	if !s.inject {
		return s, nil // as for invalid values, there is a warning
	}
	return s, checkUnknown(pod)
}

// value returns the value of the annotation and, for error messages, the object that has it and
// its name. given is false if neither object has the annotation. An empty value counts as absent,
// except for annotations that only a pod can have.
func (a Annotation) value(pod *corev1.Pod, account *corev1.ServiceAccount) (value, where string, given bool) {
	if a.On != onAccount {
		if value, given = pod.Annotations[a.Name]; given && (a.On == onPod || value != "") {
			return value, "annotation " + a.Name, true
		}
	}
	if a.On == onPod || account == nil {
		return "", "", false
	}
	// Unlike here, azure-workload-identity uses an empty tenant-id as the tenant, so that pods
	// get no tenant.
	value = account.Annotations[a.Name]
	return value, "service account " + account.Name + ": annotation " + a.Name, value != ""
}

// readTokenEndpoint reads the annotations for identity bindings. A configured endpoint takes
// precedence over that of AKS's webhook.
func readTokenEndpoint(s *settings, pod *corev1.Pod, endpoint TokenEndpoint) error {
	if endpoint != (TokenEndpoint{}) {
		bound, err := isSet(pod, TokenEndpointPrefix+endpoint.AnnotationSuffix, parseBool)
		if err != nil {
			return err
		}
		if bound {
			s.endpoint, s.Audience = &endpoint, endpoint.Audience
			return nil
		}
	}
	bound, err := isSet(pod, IdentityBindingAnnotation, parseAsAKS)
	if err == nil && bound {
		s.bound, s.Audience = true, azure.BindingAudience
	}
	return err
}

// isSet reports whether the pod has the annotation with a value that means true.
func isSet(pod *corev1.Pod, name string, parse func(string) (bool, error)) (bool, error) {
	value, given := pod.Annotations[name]
	if !given {
		return false, nil
	}
	set, err := parse(value)
	if err != nil {
		return false, refuse("annotation "+name, "%v", err)
	}
	return set, nil
}

// parseAsAKS parses the annotation that AKS's webhook reads too. It refuses other values, such as
// 1, which that webhook takes for false.
func parseAsAKS(value string) (bool, error) {
	text, err := flagenv.OneOf("true", "false")(strings.ToLower(value))
	if err != nil {
		return false, azure.Invalid(value, `must be "true" or "false"`)
	}
	return text == "true", nil
}

// checkUnknown refuses unknown annotations with ownPrefix. Otherwise a pod whose author misspells
// the annotation for sealed mode would run without sealed mode.
func checkUnknown(pod *corev1.Pod) error {
	known := ownNames()
	var unknown []string
	for name := range pod.Annotations {
		if strings.HasPrefix(name, ownPrefix) && !isWritten(name) && !slices.Contains(known, name) {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return refuse("annotation "+shorten(slices.Min(unknown)), "unknown annotation: must be one of %s", strings.Join(known, ", "))
}

// ownNames returns the names of all annotations with ownPrefix.
func ownNames() []string {
	var names []string
	for _, a := range annotations {
		if strings.HasPrefix(a.Name, ownPrefix) {
			names = append(names, a.Name)
		}
	}
	return names
}

// maxShown is the maximum number of bytes of a name in a message.
const maxShown = 100

// shorten returns a name from a pod in a form that is safe in a message of one line: the API
// server has not validated the pod yet.
func shorten(value string) string {
	if len(value) > maxShown {
		value = value[:maxShown] + "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(value, "?"))
}
