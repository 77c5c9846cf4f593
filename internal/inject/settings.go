package inject

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
)

const (
	// The API server takes no projected token of less than ten minutes; Entra's
	// documentation asks for an hour, azure-workload-identity for a day at most.
	minExpiration     = 3600
	maxExpiration     = 86400
	defaultExpiration = 3600
)

// The values of [RedirectAnnotation].
const (
	redirectForward = "forward"
	redirectSealed  = "sealed"
	redirectNone    = "none"
)

// settings is what is to be done to one pod.
type settings struct {
	clientID      azure.ClientID
	tenantID      azure.Tenant
	authorityHost azure.AuthorityHost
	audience      string

	// endpoint is where this pod trades its tokens. Nil: Entra.
	endpoint *TokenEndpoint

	expiration     int64
	expirationSaid bool // by an annotation
	skip           []string

	inject, injectSaid bool
	port, adminPort    int32
	redirect           string
	postStart          bool

	identities                    list[azure.Identity]
	prefetch                      list[azure.Resource]
	allowed                       list[azure.ClientID]
	logLevel                      string
	proxyImage, initImage         string
	proxyResources, initResources *corev1.ResourceRequirements
}

func defaults(config Config) *settings {
	return &settings{
		tenantID:       config.TenantID,
		authorityHost:  config.authorityHost(),
		audience:       config.audience(),
		expiration:     defaultExpiration,
		port:           azure.ProxyPort,
		redirect:       redirectForward,
		postStart:      config.PostStart,
		logLevel:       config.LogLevel,
		proxyImage:     config.ProxyImage,
		initImage:      config.ProxyInitImage,
		proxyResources: resourcesOr(config.ProxyResources),
		initResources:  resourcesOr(config.ProxyInitResources),
	}
}

// resourcesOr is the resources given, or those of deploy/components: measured there,
// and without a CPU limit, which would show as slow tokens in every client.
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

// list is a list of an annotation: its parsed items, and its text for the variable that the
// proxy reads, in the spelling of the pod's author.
type list[T any] struct {
	items []T
	text  string
}

// set parses a list. An empty one is refused: to the proxy it would be no list, and so a
// limit that is no limit.
func (l *list[T]) set(value string, parse func(string) (T, error)) (err error) {
	if value == "" {
		_, err = parse(value)
		return err
	}
	l.items, err = flagenv.ParseList(value, parse)
	items := strings.Split(value, ",")
	for i := range items {
		items[i] = strings.TrimSpace(items[i])
	}
	l.text = strings.Join(items, ",")
	return err
}

// The readers of annotations, each into its setting. An error quotes the value and says
// what it must be.

func readClientID(s *settings, value string) (err error) {
	s.clientID, err = azure.ParseClientID(value)
	return err
}

func readTenantID(s *settings, value string) (err error) {
	s.tenantID, err = azure.ParseTenant(value)
	return err
}

func readExpiration(s *settings, value string) error {
	seconds, err := strconv.ParseUint(value, 10, 32)
	if err != nil || seconds < minExpiration || seconds > maxExpiration {
		return azure.Invalid(value, fmt.Sprintf("must be seconds, between %d and %d", minExpiration, maxExpiration))
	}
	s.expiration, s.expirationSaid = int64(seconds), true
	return nil
}

func readSkip(s *settings, value string) error {
	for name := range strings.SplitSeq(value, ";") {
		if name = strings.TrimSpace(name); name != "" {
			s.skip = append(s.skip, name)
		}
	}
	return nil
}

func readInject(s *settings, value string) (err error) {
	s.inject, err = parseBool(value)
	s.injectSaid = true
	return err
}

func parseBool(value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, azure.Invalid(value, `must be "true" or "false"`)
	}
	return b, nil
}

func readPort(s *settings, value string) error {
	port, err := azure.ParsePort(value)
	s.port = int32(port)
	return err
}

func readAdminPort(s *settings, value string) error {
	port, err := azure.ParsePort(value)
	s.adminPort = int32(port)
	return err
}

var parseRedirect = flagenv.OneOf(redirectForward, redirectSealed, redirectNone)

func readRedirect(s *settings, value string) (err error) {
	s.redirect, err = parseRedirect(value)
	return err
}

func readIdentities(s *settings, value string) error {
	return s.identities.set(value, azure.ParseIdentity)
}

func readPrefetch(s *settings, value string) error {
	return s.prefetch.set(value, azure.ParseResource)
}

func readAllowed(s *settings, value string) error {
	return s.allowed.set(value, azure.ParseClientID)
}

// allows reports whether the proxy may be asked for a client ID: all may be where no
// list is given.
func (s *settings) allows(id azure.ClientID) bool {
	return len(s.allowed.items) == 0 || slices.Contains(s.allowed.items, id)
}

func readLogLevel(s *settings, value string) (err error) {
	s.logLevel, err = parseLogLevel(value)
	return err
}

func readProxyImage(s *settings, value string) (err error) {
	s.proxyImage, err = parseImage(value)
	return err
}

func readProxyInitImage(s *settings, value string) (err error) {
	s.initImage, err = parseImage(value)
	return err
}

func readProxyResources(s *settings, value string) (err error) {
	s.proxyResources, err = parseResources(value)
	return err
}

func readProxyInitResources(s *settings, value string) (err error) {
	s.initResources, err = parseResources(value)
	return err
}
