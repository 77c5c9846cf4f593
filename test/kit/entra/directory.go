package entra

import (
	"slices"
	"strings"
	"sync"
)

// Application is an identity of the tenant: an app registration or a
// user-assigned managed identity.
type Application struct {
	// ClientID is the application's ID. It is compared without regard to case.
	ClientID string

	// ObjectID is the oid of its tokens. Empty: derived from the client ID.
	ObjectID string

	// ResourceID is the xms_mirid of its tokens, which a managed identity may have. Empty:
	// they have none.
	ResourceID string

	// Credentials are the federated credentials. Empty: every assertion is refused.
	Credentials []FederatedCredential
}

// FederatedCredential says which assertions an application trusts. All three fields are
// compared with the assertion's claims byte for byte, as Entra does.
type FederatedCredential struct {
	// Issuer is the trusted iss. Empty: the server's own cluster issuer.
	Issuer string

	// Subject is the trusted sub.
	Subject string

	// Audience is the trusted aud. Empty: DefaultAudience.
	Audience string
}

// directory holds the applications and resources of the tenant.
type directory struct {
	mu           sync.Mutex // guards the fields below
	applications map[string]Application
	resources    map[string]bool // normalised
}

func defaultResources() map[string]bool {
	known := make(map[string]bool)
	for _, resource := range []string{
		"https://vault.azure.net",
		"https://*.vault.azure.net",
		"https://management.azure.com",
		"https://management.core.windows.net",
		"https://storage.azure.com",
		"https://*.blob.core.windows.net",
		"https://*.queue.core.windows.net",
		"https://database.windows.net",
		"https://ossrdbms-aad.database.windows.net",
		"https://graph.microsoft.com",
		"https://servicebus.azure.net",
		"https://eventhubs.azure.net",
		"https://cosmos.azure.com",
		"https://cognitiveservices.azure.com",
		"https://containerregistry.azure.net",
		"https://monitor.azure.com",
	} {
		known[resource] = true
	}
	return known
}

// AddApplication adds an application, or replaces the one with the same client ID.
func (s *Server) AddApplication(a Application) {
	a.Credentials = s.completeCredentials(a.Credentials)
	if a.ObjectID == "" {
		a.ObjectID = nameUUID("oid", strings.ToLower(a.ClientID))
	}
	d := &s.directory
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.applications == nil {
		d.applications = make(map[string]Application)
	}
	d.applications[strings.ToLower(a.ClientID)] = a
}

func (s *Server) completeCredentials(given []FederatedCredential) []FederatedCredential {
	credentials := slices.Clone(given)
	for i := range credentials {
		c := &credentials[i]
		if c.Issuer == "" {
			c.Issuer = s.Issuer()
		}
		if c.Audience == "" {
			c.Audience = DefaultAudience
		}
	}
	return credentials
}

// RemoveApplication removes an application.
func (s *Server) RemoveApplication(clientID string) {
	d := &s.directory
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.applications, strings.ToLower(clientID))
}

// AddResource adds a resource to the tenant: a GUID or a URI, whose first label may be *,
// as in https://*.example.test. A trailing slash and the case do not matter.
func (s *Server) AddResource(resource string) {
	d := &s.directory
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resources[normaliseResource(resource)] = true
}

func (d *directory) application(clientID string) (Application, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	a, ok := d.applications[strings.ToLower(clientID)]
	return a, ok
}

func (d *directory) knowsResource(resource string) bool {
	name := normaliseResource(resource)
	if strings.Contains(name, "*") {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.resources[name] {
		return true
	}
	scheme, host, ok := strings.Cut(name, "://")
	if !ok {
		return false
	}
	_, parent, ok := strings.Cut(host, ".")
	return ok && d.resources[scheme+"://*."+parent]
}

func normaliseResource(resource string) string {
	return strings.TrimRight(strings.ToLower(resource), "/")
}
