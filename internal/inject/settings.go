package inject

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
)

const (
	// The limits are azure-workload-identity's. The API server accepts ten minutes or more
	// for a projected token, and Entra's documentation requires an hour.
	minExpiration     = 3600
	maxExpiration     = 86400
	defaultExpiration = 3600
)

// redirect is a value of [RedirectAnnotation].
type redirect string

// The values of [RedirectAnnotation].
const (
	redirectForward    redirect = "forward"
	redirectSealed     redirect = "sealed"
	redirectNone       redirect = "none"
	redirectCNIForward redirect = "cni-forward"
	redirectCNISealed  redirect = "cni-sealed"
)

// byCNI reports whether the CNI plugin installs the redirect, and not the init container.
func (r redirect) byCNI() bool { return r == redirectCNIForward || r == redirectCNISealed }

// sealed reports whether the redirect exempts no process.
func (r redirect) sealed() bool { return r == redirectSealed || r == redirectCNISealed }

// forwards reports whether the redirect exempts the proxy, which forwards instance metadata.
func (r redirect) forwards() bool { return r == redirectForward || r == redirectCNIForward }

// sealedForm returns the value with which the redirect exempts no process.
func (r redirect) sealedForm() redirect {
	if r.byCNI() {
		return redirectCNISealed
	}
	return redirectSealed
}

// settings is the configuration for one pod.
type settings struct {
	Config // changed by annotations

	clientID azure.ClientID

	// endpoint is the configured token endpoint of this pod. bound is true if the pod selects
	// an identity binding of AKS instead, whose endpoint AKS's webhook sets in the pod. If
	// neither is set, tokens come from Entra.
	endpoint *TokenEndpoint
	bound    bool

	expiration    int64
	expirationSet bool            // by an annotation
	skip          map[string]bool // names of containers

	inject, injectSet bool
	port, adminPort   int32
	redirect          redirect
	noValidator       bool   // see proxyProves
	appService        *bool  // nil: the default, which depends on redirect
	shutdownDelay     string // [shutdownDelayEnv]
	memoryLimit       string // the proxy's GOMEMLIMIT

	instanceConfigMap ConfigMapKey

	identities list[azure.Identity]
	prefetch   list[azure.Resource]
	allowed    list[azure.ClientID]
}

func defaults(config Config) *settings {
	config.AuthorityHost, config.Audience = config.authorityHost(), config.audience()
	config.ProxyResources = resourcesOr(config.ProxyResources)
	config.ProxyInitResources = resourcesOr(config.ProxyInitResources)
	return &settings{Config: config, expiration: defaultExpiration, port: azure.ProxyPort, redirect: cmp.Or(redirect(config.Redirect), redirectForward)}
}

// resourcesOr returns a copy of the given resources, or the default resources, which are those
// of deploy/components. They were measured there. They have no CPU limit, which would delay the
// tokens of all clients.
func resourcesOr(given *corev1.ResourceRequirements) *corev1.ResourceRequirements {
	if given != nil {
		return given.DeepCopy()
	}
	return &corev1.ResourceRequirements{
		Requests: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("5m"),
			corev1.ResourceMemory: resource.MustParse("16Mi"),
		},
		Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
	}
}

// list is the list in an annotation: its parsed items, and its text for the proxy's environment
// variable, as the pod's author spelled it.
type list[T any] struct {
	items []T
	text  string
}

// listOf returns a parser of lists. It refuses an empty list, which the proxy would read as not
// set: an empty list of allowed client IDs would allow all.
func listOf[T any](parse func(string) (T, error)) func(string) (list[T], error) {
	return func(value string) (l list[T], err error) {
		if value == "" {
			_, err = parse(value)
			return l, err
		}
		l.items, err = flagenv.ParseList(value, parse)
		items := strings.Split(value, ",")
		for i := range items {
			items[i] = strings.TrimSpace(items[i])
		}
		l.text = strings.Join(items, ",")
		return l, err
	}
}

// into returns the reader of an annotation whose value is parsed into one setting. The error
// quotes the value and says what it must be.
func into[T any](setting func(*settings) *T, parse func(string) (T, error)) func(*settings, string) error {
	return func(s *settings, value string) (err error) {
		*setting(s), err = parse(value)
		return err
	}
}

// The readers of annotations.
var (
	readClientID           = into(func(s *settings) *azure.ClientID { return &s.clientID }, azure.ParseClientID)
	readTenantID           = into(func(s *settings) *azure.Tenant { return &s.TenantID }, azure.ParseTenant)
	readPort               = into(func(s *settings) *int32 { return &s.port }, parsePort)
	readAdminPort          = into(func(s *settings) *int32 { return &s.adminPort }, parsePort)
	readRedirect           = into(func(s *settings) *redirect { return &s.redirect }, parseRedirect)
	readIdentities         = into(func(s *settings) *list[azure.Identity] { return &s.identities }, listOf(azure.ParseIdentity))
	readPrefetch           = into(func(s *settings) *list[azure.Resource] { return &s.prefetch }, listOf(azure.ParseResource))
	readAllowed            = into(func(s *settings) *list[azure.ClientID] { return &s.allowed }, listOf(azure.ParseClientID))
	readLogLevel           = into(func(s *settings) *string { return &s.LogLevel }, parseLogLevel)
	readProxyImage         = into(func(s *settings) *string { return &s.ProxyImage }, parseImage)
	readProxyInitImage     = into(func(s *settings) *string { return &s.ProxyInitImage }, parseImage)
	readProxyResources     = into(func(s *settings) **corev1.ResourceRequirements { return &s.ProxyResources }, parseResources)
	readHTTPSProxy         = into(func(s *settings) *string { return &s.HTTPSProxy }, flagenv.Optional(azure.ParseHTTPProxy))
	readNoProxy            = into(func(s *settings) *string { return &s.NoProxy }, parseNoProxy)
	readCAConfigMap        = into(func(s *settings) *ConfigMapKey { return &s.CAConfigMap }, flagenv.Optional(parseConfigMapKey))
	readInstance           = into(func(s *settings) *ConfigMapKey { return &s.instanceConfigMap }, flagenv.Optional(configMapKeyOr(instanceKey)))
	readProxyEnv           = into(func(s *settings) *[]corev1.EnvVar { return &s.ProxyEnv }, parseEnv)
	readProxyInitResources = into(func(s *settings) **corev1.ResourceRequirements { return &s.ProxyInitResources }, parseResources)
)

func parseRedirect(value string) (redirect, error) {
	valid, err := oneRedirect(value)
	return redirect(valid), err
}

var oneRedirect = flagenv.OneOf(string(redirectForward), string(redirectSealed), string(redirectNone), string(redirectCNIForward), string(redirectCNISealed))

// parsePort parses a port into the type of the fields of a pod.
func parsePort(value string) (int32, error) {
	port, err := azure.ParsePort(value)
	return int32(port), err
}

func readAppService(s *settings, value string) error {
	on, err := parseBool(value)
	s.appService = &on
	return err
}

func readCNIValidator(s *settings, value string) error {
	validate, err := parseBool(value)
	s.noValidator = !validate
	return err
}

func readExpiration(s *settings, value string) error {
	seconds, err := strconv.ParseUint(value, 10, 32)
	if err != nil || seconds < minExpiration || seconds > maxExpiration {
		return azure.Invalid(value, fmt.Sprintf("must be between %d and %d seconds", minExpiration, maxExpiration))
	}
	s.expiration, s.expirationSet = int64(seconds), true
	return nil
}

func readSkip(s *settings, value string) error {
	s.skip = map[string]bool{}
	for name := range strings.SplitSeq(value, ";") {
		if name = strings.TrimSpace(name); name != "" {
			s.skip[name] = true
		}
	}
	return nil
}

func readInject(s *settings, value string) (err error) {
	s.inject, err = parseBool(value)
	s.injectSet = true
	return err
}

func parseBool(value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, azure.Invalid(value, `must be "true" or "false"`)
	}
	return b, nil
}

// allows returns a function that reports whether the proxy serves requests for a client ID.
// Without a list it serves all.
func (s *settings) allows() func(azure.ClientID) bool {
	allowed := make(map[azure.ClientID]bool, len(s.allowed.items))
	for _, id := range s.allowed.items {
		allowed[id] = true
	}
	return func(id azure.ClientID) bool { return len(allowed) == 0 || allowed[id] }
}
