package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const (
	// The API server takes no projected token of less than ten minutes; Entra's
	// documentation asks for an hour, azure-workload-identity for a day at most.
	minExpiration     = 3600
	maxExpiration     = 86400
	defaultExpiration = 3600

	defaultPort = 8000
)

// The values of [RedirectAnnotation].
const (
	redirectForward = "forward"
	redirectSealed  = "sealed"
	redirectNone    = "none"
)

// logLevels are those that both containers know.
var logLevels = []string{"error", "warn", "info", "debug"}

// settings is what is to be done to one pod.
type settings struct {
	clientID, tenantID, authorityHost, audience string

	// endpoint is where this pod trades its tokens. Nil: Entra.
	endpoint *TokenEndpoint

	expiration     int64
	expirationSaid bool // by an annotation
	skip           []string

	inject, injectSaid bool
	port, adminPort    int32
	redirect           string
	postStart          bool

	identities                    []string // SELECTOR=CLIENT_ID
	prefetch, allowed             []string
	logLevel                      string
	proxyImage, initImage         string
	proxyResources, initResources corev1.ResourceRequirements
}

func defaults(config Config) *settings {
	return &settings{
		tenantID:       config.TenantID,
		authorityHost:  config.authorityHost(),
		audience:       config.audience(),
		expiration:     defaultExpiration,
		port:           defaultPort,
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
func resourcesOr(given *corev1.ResourceRequirements) corev1.ResourceRequirements {
	if given != nil {
		return *given.DeepCopy()
	}
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("5m"),
			corev1.ResourceMemory: resource.MustParse("16Mi"),
		},
		Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
	}
}

var (
	guid = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

	// tokenResource is what the proxy takes as one, which would otherwise refuse to start:
	// a GUID, or an absolute URI without a fragment. A test holds it to that.
	tokenResource = regexp.MustCompile(`^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(/\.default)?|` +
		`[A-Za-z][A-Za-z0-9+.-]*:([A-Za-z0-9._~:/?[\]@!$&'()*+;=-]|%[0-9a-fA-F]{2})+)$`)
	// domain is a tenant's, which has a dot: a name without one is a slip. It becomes a
	// part of a URL's path.
	domain = regexp.MustCompile(`^([0-9a-zA-Z]([0-9a-zA-Z-]*[0-9a-zA-Z])?\.)+[0-9a-zA-Z]([0-9a-zA-Z-]*[0-9a-zA-Z])?$`)
	// image is a loose check: what can be no reference in any registry.
	image = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._:/@-]{0,511}$`)
	// armID is the shape of a resource ID; see isARMID.
	armID = regexp.MustCompile(`(?i)^/subscriptions/[^/,=\s]+/resourcegroups/[^/,=\s]+/providers/Microsoft\.ManagedIdentity/userAssignedIdentities/[^/,=\s]+$`)
)

// maxDomain is what DNS allows.
const maxDomain = 253

func isTenant(s string) bool {
	return guid.MatchString(s) || len(s) <= maxDomain && domain.MatchString(s)
}

// ValidClientID reports whether a client ID can be one: a GUID.
func ValidClientID(s string) bool { return guid.MatchString(s) }

// maxARMID is the proxy's own bound.
const maxARMID = 512

// isARMID reports whether the proxy takes s as a resource ID. A test holds it to that.
func isARMID(s string) bool {
	// Where case does not matter, K and S have twins beyond ASCII.
	beyond := strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
	return len(s) <= maxARMID && !beyond && armID.MatchString(s)
}

func checkImage(s string) error {
	if !image.MatchString(s) {
		return errors.New("say an image, such as registry.example.test/imds-oidc-proxy:v1.0.0")
	}
	return nil
}

func readClientID(s *settings, value string) error {
	if !guid.MatchString(value) {
		return errors.New("write the client ID of the identity, a GUID")
	}
	s.clientID = value
	return nil
}

func readTenantID(s *settings, value string) error {
	if !isTenant(value) {
		return errors.New("write the tenant's ID, a GUID, or its domain")
	}
	s.tenantID = value
	return nil
}

func readExpiration(s *settings, value string) error {
	seconds, err := strconv.ParseUint(value, 10, 32)
	if err != nil || seconds < minExpiration || seconds > maxExpiration {
		return fmt.Errorf("write seconds, from %d to %d", minExpiration, maxExpiration)
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
		return false, errors.New(`write "true" or "false"`)
	}
	return b, nil
}

func readPort(s *settings, value string) (err error) {
	s.port, err = parsePort(value)
	return err
}

func readAdminPort(s *settings, value string) (err error) {
	s.adminPort, err = parsePort(value)
	return err
}

func parsePort(value string) (int32, error) {
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil || port == 0 {
		return 0, errors.New("write a port, from 1 to 65535")
	}
	return int32(port), nil
}

func readRedirect(s *settings, value string) error {
	if !slices.Contains([]string{redirectForward, redirectSealed, redirectNone}, value) {
		return errors.New("write forward, sealed or none")
	}
	s.redirect = value
	return nil
}

// list takes a list apart. It reports false if one of its items is not what it should be.
func list(value string, check func(string) bool) (items []string, ok bool) {
	for item := range strings.SplitSeq(value, ",") {
		if item = strings.TrimSpace(item); !check(item) {
			return nil, false
		}
		items = append(items, item)
	}
	return items, true
}

func readIdentities(s *settings, value string) error {
	var ok bool
	s.identities, ok = list(value, func(pair string) bool {
		// A resource ID holds no equals sign, and a client ID neither.
		selector, clientID, found := strings.Cut(pair, "=")
		return found && guid.MatchString(clientID) && (guid.MatchString(selector) || isARMID(selector))
	})
	if !ok {
		return errors.New("write OBJECT_ID=CLIENT_ID or /subscriptions/…/userAssignedIdentities/NAME=CLIENT_ID, separated by commas")
	}
	return nil
}

func readPrefetch(s *settings, value string) error {
	var ok bool
	if s.prefetch, ok = list(value, tokenResource.MatchString); !ok {
		return errors.New("write resources such as https://vault.azure.net, separated by commas")
	}
	return nil
}

func readAllowed(s *settings, value string) error {
	var ok bool
	if s.allowed, ok = list(value, guid.MatchString); !ok {
		return errors.New("write client IDs, separated by commas")
	}
	return nil
}

func readLogLevel(s *settings, value string) error {
	if !slices.Contains(logLevels, value) {
		return fmt.Errorf("write one of %s", strings.Join(logLevels, ", "))
	}
	s.logLevel = value
	return nil
}

func readProxyImage(s *settings, value string) error {
	s.proxyImage = value
	return checkImage(value)
}

func readProxyInitImage(s *settings, value string) error {
	s.initImage = value
	return checkImage(value)
}

func readProxyResources(s *settings, value string) (err error) {
	s.proxyResources, err = parseResources(value)
	return err
}

func readProxyInitResources(s *settings, value string) (err error) {
	s.initResources, err = parseResources(value)
	return err
}

func parseResources(value string) (corev1.ResourceRequirements, error) {
	var r corev1.ResourceRequirements
	decoder := json.NewDecoder(strings.NewReader(value))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		return r, errors.New(`write JSON with requests and limits, such as {"limits": {"memory": "128Mi"}}`)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return r, errors.New("write one JSON object, and nothing after it")
	}
	return r, checkResources(&r)
}

// checkResources says what the API server would say of a field that the pod's
// author never wrote.
func checkResources(r *corev1.ResourceRequirements) error {
	if r == nil {
		return nil
	}
	if len(r.Claims) > 0 {
		return errors.New("claims: write requests and limits only")
	}
	for _, list := range []corev1.ResourceList{r.Requests, r.Limits} {
		for name, quantity := range list {
			if !slices.Contains([]corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}, name) {
				return fmt.Errorf("%s: write cpu, memory or ephemeral-storage", name)
			}
			if quantity.Sign() < 0 {
				return fmt.Errorf("%s: write no negative quantity", name)
			}
		}
	}
	for name, limit := range r.Limits {
		if request, ok := r.Requests[name]; ok && request.Cmp(limit) > 0 {
			return fmt.Errorf("%s: write a limit that is no less than the request of %s", name, &request)
		}
	}
	return nil
}
