package inject

import (
	"maps"
	"slices"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
)

// The words of azure-workload-identity (v1.6.0), which are also ours.
const (
	// UseLabel, with the value "true", says that a pod takes part.
	UseLabel = "azure.workload.identity/use"

	ClientIDAnnotation        = "azure.workload.identity/client-id"
	TenantIDAnnotation        = "azure.workload.identity/tenant-id"
	TokenExpirationAnnotation = "azure.workload.identity/service-account-token-expiration"
	SkipContainersAnnotation  = "azure.workload.identity/skip-containers"
	InjectProxyAnnotation     = "azure.workload.identity/inject-proxy-sidecar"
	ProxyPortAnnotation       = "azure.workload.identity/proxy-sidecar-port"

	// TokenEndpointPrefix and [TokenEndpoint.AnnotationSuffix] are the annotation by
	// which a pod asks for identity bindings.
	TokenEndpointPrefix = "azure.workload.identity/use-"

	// ProxyName and ProxyInitName are the containers.
	ProxyName     = "azwi-proxy"
	ProxyInitName = "azwi-proxy-init"
)

// Our own words, beside which azure-workload-identity has none.
const (
	RedirectAnnotation           = "imds-oidc-proxy/redirect"
	IdentitiesAnnotation         = "imds-oidc-proxy/identities"
	PrefetchAnnotation           = "imds-oidc-proxy/prefetch"
	AllowedClientIDsAnnotation   = "imds-oidc-proxy/allowed-client-ids"
	LogLevelAnnotation           = "imds-oidc-proxy/log-level"
	AdminPortAnnotation          = "imds-oidc-proxy/admin-port"
	ProxyImageAnnotation         = "imds-oidc-proxy/proxy-image"
	ProxyInitImageAnnotation     = "imds-oidc-proxy/proxy-init-image"
	ProxyResourcesAnnotation     = "imds-oidc-proxy/proxy-resources"
	ProxyInitResourcesAnnotation = "imds-oidc-proxy/proxy-init-resources"
)

// Annotation is one word by which a pod or a service account says what it wants.
type Annotation struct {
	// Name, in full; of identity bindings with SUFFIX for what the configuration says.
	Name string
	// On says where it stands: pod, service account, or both, the pod's winning; or
	// that it is a label.
	On string
	// Values says what may be written.
	Values string
	// Default is what holds without it. Empty: nothing.
	Default string
	// Effect is one sentence.
	Effect string

	// read takes a value into the settings; its error quotes the value. Nil: not an
	// annotation that is read as a setting.
	read func(s *settings, value string) error
	// proxy marks what has an effect only where the proxy is injected.
	proxy bool
}

const (
	onPod     = "pod"
	onAccount = "service account"
	onBoth    = "pod, service account"
	onLabel   = "pod, as a label"
)

// Annotations is the table of all that is read, in the order of the documentation.
func Annotations() []Annotation { return slices.Clone(annotations) }

var annotations = []Annotation{
	{Name: UseLabel, On: onLabel, Values: `"true"`,
		Effect: "the pod takes part; without it nothing here has an effect"},
	{Name: ClientIDAnnotation, On: onAccount, Values: "a client ID",
		Effect: "`AZURE_CLIENT_ID`: the identity of requests that name none", read: readClientID},
	{Name: TenantIDAnnotation, On: onAccount, Values: "a tenant's ID or domain", Default: "as configured",
		Effect: "`AZURE_TENANT_ID`", read: readTenantID},
	{Name: TokenExpirationAnnotation, On: onBoth, Values: "3600 to 86400, in seconds", Default: "3600",
		Effect: "how long the projected token is valid; the pod's own annotation wins", read: readExpiration},
	{Name: SkipContainersAnnotation, On: onPod, Values: "names, separated by semicolons",
		Effect: "these containers and init containers get neither variables nor token", read: readSkip},
	{Name: InjectProxyAnnotation, On: onPod, Values: `"true" or "false"`, Default: `"false"`,
		Effect: "`\"true\"` injects redirect and proxy", read: readInject},
	{Name: ProxyPortAnnotation, On: onPod, Values: "1 to 65535", Default: "8000",
		Effect: "where the proxy listens, on 127.0.0.1", read: readPort, proxy: true},
	{Name: TokenEndpointPrefix + "SUFFIX", On: onPod, Values: `"true" or "false"`, Default: `"false"`,
		Effect: "`\"true\"` trades tokens at the cluster's own endpoint (identity bindings); SUFFIX and endpoint are configured"},
	{Name: RedirectAnnotation, On: onPod, Values: "`forward`, `sealed` or `none`", Default: "`forward`",
		Effect: "`forward` redirects the metadata address and forwards instance metadata; `sealed` forwards nothing, and nobody in the pod reaches the address; `none` has no init container and sets `AZURE_POD_IDENTITY_AUTHORITY_HOST` for the application instead",
		read:   readRedirect, proxy: true},
	{Name: IdentitiesAnnotation, On: onPod, Values: "SELECTOR=CLIENT_ID, separated by commas",
		Effect: "`PROXY_IDENTITY`: requests by this object ID or ARM resource ID get this client ID's token", read: readIdentities, proxy: true},
	{Name: PrefetchAnnotation, On: onPod, Values: "resources, separated by commas",
		Effect: "`PROXY_PREFETCH`: a token for these is ready before it is asked for", read: readPrefetch, proxy: true},
	{Name: AllowedClientIDsAnnotation, On: onPod, Values: "client IDs, separated by commas", Default: "any",
		Effect: "`PROXY_ALLOWED_CLIENT_IDS`: no other may be asked for", read: readAllowed, proxy: true},
	{Name: LogLevelAnnotation, On: onPod, Values: "`error`, `warn`, `info` or `debug`", Default: "as configured, else `info`",
		Effect: "`PROXY_LOG_LEVEL` of both containers", read: readLogLevel, proxy: true},
	{Name: AdminPortAnnotation, On: onPod, Values: "1 to 65535", Default: "none",
		Effect: "`PROXY_ADMIN_ADDRESS`: health and metrics at this port of the pod's address, with a liveness probe, and the label that the PodMonitor looks for", read: readAdminPort, proxy: true},
	{Name: ProxyImageAnnotation, On: onPod, Values: "an image", Default: "as configured",
		Effect: "the image of `azwi-proxy`", read: readProxyImage, proxy: true},
	{Name: ProxyInitImageAnnotation, On: onPod, Values: "an image", Default: "as configured",
		Effect: "the image of `azwi-proxy-init`", read: readProxyInitImage, proxy: true},
	{Name: ProxyResourcesAnnotation, On: onPod, Values: "JSON such as `{\"limits\": {\"memory\": \"128Mi\"}}`", Default: "as configured, else 5m CPU, 16Mi to 64Mi of memory",
		Effect: "the resources of `azwi-proxy`, in whole", read: readProxyResources, proxy: true},
	{Name: ProxyInitResourcesAnnotation, On: onPod, Values: "JSON, as above", Default: "as configured, else 5m CPU, 16Mi to 64Mi of memory",
		Effect: "the resources of `azwi-proxy-init`, in whole", read: readProxyInitResources, proxy: true},
}

// ownPrefix begins the annotations that nobody else has a use for.
const ownPrefix = "imds-oidc-proxy/"

// readSettings takes what pod and service account say over what holds for all.
func readSettings(pod *corev1.Pod, account *corev1.ServiceAccount, config Config) (*settings, error) {
	s := defaults(config)
	for _, a := range annotations {
		if a.read == nil {
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
	return s, checkUnknown(pod)
}

// value is what the table's annotation says here, and where it says so.
func (a Annotation) value(pod *corev1.Pod, account *corev1.ServiceAccount) (value, where string, given bool) {
	if a.On != onAccount {
		if value, given = pod.Annotations[a.Name]; given && (a.On == onPod || value != "") {
			return value, "annotation " + a.Name, true
		}
	}
	if a.On == onPod || account == nil {
		return "", "", false
	}
	// An empty value says nothing. azure-workload-identity takes an empty tenant-id for
	// a tenant, and such pods get none.
	value = account.Annotations[a.Name]
	return value, "service account " + account.Name + ": annotation " + a.Name, value != ""
}

func readTokenEndpoint(s *settings, pod *corev1.Pod, endpoint TokenEndpoint) error {
	name := TokenEndpointPrefix + endpoint.AnnotationSuffix
	value, given := pod.Annotations[name]
	if endpoint == (TokenEndpoint{}) || !given {
		return nil
	}
	bound, err := parseBool(value)
	if err != nil {
		return refuse("annotation "+name, "%v", err)
	}
	if bound {
		s.endpoint, s.Audience = &endpoint, endpoint.Audience
	}
	return nil
}

// checkUnknown refuses words under our prefix that are none of ours: a misspelt
// redirect mode would otherwise leave open what its author meant to seal.
func checkUnknown(pod *corev1.Pod) error {
	known := ownNames()
	for _, name := range slices.Sorted(maps.Keys(pod.Annotations)) {
		if strings.HasPrefix(name, ownPrefix) && !slices.Contains(known, name) {
			return refuse("annotation "+shorten(name), "there is none of this name; write one of %s", strings.Join(known, ", "))
		}
	}
	return nil
}

func ownNames() []string {
	var names []string
	for _, a := range annotations {
		if strings.HasPrefix(a.Name, ownPrefix) {
			names = append(names, a.Name)
		}
	}
	return names
}

// maxShown bounds what a message repeats of a value.
const maxShown = 100

// shorten makes of what a pod says a part of one line: the pod has not been validated
// yet where this is shown.
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
