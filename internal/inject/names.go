package inject

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
