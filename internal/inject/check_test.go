package inject_test

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

func runAs(user int64) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: &user}
	}
}

func podRunsAs(user int64) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user} }
}

func listens(port int32, protocol corev1.Protocol) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: port, Protocol: protocol}}
	}
}

// refusals are pods that are refused, with the error for their authors.
var refusals = []struct {
	name string
	pod  *corev1.Pod
	want string
}{
	{"invalid boolean", labelled(annotate(inject.InjectProxyAnnotation, "yes please")),
		`annotation azure.workload.identity/inject-proxy-sidecar: "yes please": must be "true" or "false"`},
	{"empty boolean", labelled(annotate(inject.InjectProxyAnnotation, "")),
		`annotation azure.workload.identity/inject-proxy-sidecar: "": must be "true" or "false"`},
	{"port 0", injected(annotate(inject.ProxyPortAnnotation, "0")),
		`annotation azure.workload.identity/proxy-sidecar-port: "0": must be between 1 and 65535`},
	{"port 65536", injected(annotate(inject.ProxyPortAnnotation, "65536")),
		`annotation azure.workload.identity/proxy-sidecar-port: "65536": must be between 1 and 65535`},
	{"a signed port", injected(annotate(inject.ProxyPortAnnotation, "+8000")),
		`annotation azure.workload.identity/proxy-sidecar-port: "+8000": must be between 1 and 65535`},
	{"the application's port", injected(listens(8000, "")),
		`annotation azure.workload.identity/proxy-sidecar-port: container "app" listens on port 8000; use a port that no container declares`},
	{"the application's port for admin", injected(listens(8001, corev1.ProtocolTCP), annotate(inject.AdminPortAnnotation, "8001")),
		`annotation imds-oidc-proxy/admin-port: container "app" listens on port 8001; use a port that no container declares`},
	{"one port for both", injected(annotate(inject.AdminPortAnnotation, "8000")),
		`annotation imds-oidc-proxy/admin-port: 8000 is the port of the proxy; use another port`},
	{"hostNetwork", injected(func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		`spec.hostNetwork: true: the redirect would apply to the node and all its pods; set it to false, or remove annotation azure.workload.identity/inject-proxy-sidecar`},
	{"windows", injected(func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }),
		`spec.os.name: windows: the redirect and the proxy need Linux; remove annotation azure.workload.identity/inject-proxy-sidecar`},
	{"windows nodes", injected(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"kubernetes.io/os": "windows"} }),
		`spec.nodeSelector: windows: the redirect and the proxy need Linux; remove annotation azure.workload.identity/inject-proxy-sidecar`},
	{"the proxy's user", injected(runAs(1501)),
		`spec.containers[app].securityContext.runAsUser: 1501 is the proxy's user, which the redirect does not keep from the node's IMDS; use another user, or annotation imds-oidc-proxy/redirect: sealed`},
	{"the proxy's user for all", injected(podRunsAs(1501)),
		`spec.securityContext.runAsUser: 1501 is the proxy's user, which the redirect does not keep from the node's IMDS; use another user, or annotation imds-oidc-proxy/redirect: sealed`},
	{"a container with the proxy's name, alone", injected(func(p *corev1.Pod) { p.Spec.Containers[0].Name = "azwi-proxy" }),
		`spec.containers[azwi-proxy].name: this name is reserved for the injected container, and the pod has no other container; use another name`},
	{"a signed expiration", labelled(annotate(inject.TokenExpirationAnnotation, "+3600")),
		`annotation azure.workload.identity/service-account-token-expiration: "+3600": must be between 3600 and 86400 seconds`},
	{"an expiration too short", labelled(annotate(inject.TokenExpirationAnnotation, "3599")),
		`annotation azure.workload.identity/service-account-token-expiration: "3599": must be between 3600 and 86400 seconds`},
	{"an expiration too long", labelled(annotate(inject.TokenExpirationAnnotation, "86401")),
		`annotation azure.workload.identity/service-account-token-expiration: "86401": must be between 3600 and 86400 seconds`},
	{"a duration", labelled(annotate(inject.TokenExpirationAnnotation, "1h")),
		`annotation azure.workload.identity/service-account-token-expiration: "1h": must be between 3600 and 86400 seconds`},
	{"the proxy's user, with the CNI plugin", injected(runAs(1501), annotate(inject.RedirectAnnotation, "cni-forward")),
		`spec.containers[app].securityContext.runAsUser: 1501 is the proxy's user, which the redirect does not keep from the node's IMDS; use another user, or annotation imds-oidc-proxy/redirect: cni-sealed`},
	{"a redirect mode", injected(annotate(inject.RedirectAnnotation, "seal")),
		`annotation imds-oidc-proxy/redirect: "seal": must be forward, sealed, none, cni-forward or cni-sealed`},
	{"identities", injected(annotate(inject.IdentitiesAnnotation, "name="+clientID)),
		`annotation imds-oidc-proxy/identities: "name": must be an object ID (a GUID) or the ARM resource ID of a user-assigned identity, before =CLIENT_ID`},
	{"prefetch on two lines", injected(annotate(inject.PrefetchAnnotation, "https://a.example.test\nhttps://b.example.test")),
		`annotation imds-oidc-proxy/prefetch: "https://a.example.test\nhttps://b.example.test": must be one line, with commas between its items`},
	{"allowed client IDs", injected(annotate(inject.AllowedClientIDsAnnotation, clientID+";"+clientID)),
		`annotation imds-oidc-proxy/allowed-client-ids: "` + clientID + ";" + clientID + `": must be a GUID: the application (client) ID, not a name or a resource ID`},
	{"no allowed client IDs", injected(annotate(inject.AllowedClientIDsAnnotation, "")),
		`annotation imds-oidc-proxy/allowed-client-ids: "": must be a GUID`},
	{"an allowed client ID and nothing", injected(annotate(inject.AllowedClientIDsAnnotation, clientID+",")),
		`annotation imds-oidc-proxy/allowed-client-ids: "": must be a GUID`},
	{"a client ID that is not allowed", injected(annotate(inject.AllowedClientIDsAnnotation, otherID)),
		`annotation imds-oidc-proxy/allowed-client-ids: must contain ` + clientID + `, the client ID of service account app`},
	{"an identity that is not allowed", injected(annotate(inject.AllowedClientIDsAnnotation, clientID), annotate(inject.IdentitiesAnnotation, objectID+"="+otherID)),
		`annotation imds-oidc-proxy/allowed-client-ids: must contain ` + otherID + `, a client ID in annotation imds-oidc-proxy/identities`},
	{"one selector for two", injected(annotate(inject.IdentitiesAnnotation, objectID+"="+clientID+","+strings.ToUpper(objectID)+"="+otherID)),
		`annotation imds-oidc-proxy/identities: "` + objectID + `": must have one client ID, and has ` + clientID + ` and ` + otherID},
	{"a token that root alone reads", injected(ownToken, tokenMode(0o400)),
		`spec.volumes[mine].projected.defaultMode: 0400: the proxy's user cannot read the token; set it to 0444, or set spec.securityContext.fsGroup`},
	{"a token that root's group does not read", injected(ownToken, tokenMode(0o400), rootsGroup),
		`spec.volumes[mine].projected.defaultMode: 0400: the proxy's user cannot read the token; `},
	{"a log level", injected(annotate(inject.LogLevelAnnotation, "loud")),
		`annotation imds-oidc-proxy/log-level: "loud": must be error, warn, info or debug`},
	{"an image", injected(annotate(inject.ProxyImageAnnotation, "a b")),
		`annotation imds-oidc-proxy/proxy-image: "a b": must be an image, such as registry.example.test/imds-oidc-proxy:v1.0.0`},
	{"an image with a scheme", injected(annotate(inject.ProxyImageAnnotation, "https://registry.example.test/p:v1")),
		`annotation imds-oidc-proxy/proxy-image: "https://registry.example.test/p:v1": must be an image without a scheme, such as registry.example.test/imds-oidc-proxy:v1.0.0`},
	{"resources that are not JSON", injected(annotate(inject.ProxyResourcesAnnotation, "128Mi")),
		`annotation imds-oidc-proxy/proxy-resources: "128Mi": must be JSON with requests and limits, such as {"limits": {"memory": "128Mi"}}`},
	{"misspelt resources", injected(annotate(inject.ProxyResourcesAnnotation, `{"limit": {}}`)),
		`annotation imds-oidc-proxy/proxy-resources: "{\"limit\": {}}": must be JSON with requests and limits, such as {"limits": {"memory": "128Mi"}}`},
	{"a request above the limit", injected(annotate(inject.ProxyInitResourcesAnnotation, `{"requests":{"cpu":"2"},"limits":{"cpu":"1"}}`)),
		`annotation imds-oidc-proxy/proxy-init-resources: "{\"requests\":{\"cpu\":\"2\"},\"limits\":{\"cpu\":\"1\"}}": the limit of cpu must be at least its request, 2`},
	{"lines in a name", injected(runAs(1501), func(p *corev1.Pod) { p.Spec.Containers[0].Name = "a\nb" }),
		`spec.containers[a?b].securityContext.runAsUser: 1501 is`},
	{"lines in an annotation's name", injected(annotate("imds-oidc-proxy/a\nb", "")),
		`annotation imds-oidc-proxy/a?b: unknown annotation`},
	{"a misspelt annotation", injected(annotate("imds-oidc-proxy/redirects", "sealed")),
		`annotation imds-oidc-proxy/redirects: unknown annotation: must be one of imds-oidc-proxy/redirect, `},
	{"another volume at the token's path", labelled(func(p *corev1.Pod) {
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "mine", MountPath: "/var/run/secrets/azure/wi/"}}
	}), `spec.containers[app].volumeMounts: volume "mine" is mounted at /var/run/secrets/azure/wi, the path of the federated token; mount it at another path, or add the container to annotation azure.workload.identity/skip-containers`},
}

func TestRefusals(t *testing.T) {
	for _, c := range refusals {
		t.Run(c.name, func(t *testing.T) {
			result, err := inject.Pod(c.pod, account(), config())
			checkRefusal(t, err, c.want)
			if len(result.Patch) > 0 {
				t.Errorf("a refused pod has a patch: %v", result.Patch)
			}
		})
	}
}

func checkRefusal(t *testing.T, err error, want string) {
	t.Helper()
	if _, refused := errors.AsType[*inject.Refusal](err); !refused {
		t.Fatalf("error %v (%T), want a refusal: %s", err, err, want)
	}
	if !strings.HasPrefix(err.Error(), want) {
		t.Errorf("refusal\n%s, want\n%s", err, want)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
}

// TestAccountRefusals checks that annotations of the service account are validated like the pod's,
// and that the error names the service account.
func TestAccountRefusals(t *testing.T) {
	for name, c := range map[string]struct{ annotation, value, want string }{
		"client ID":  {inject.ClientIDAnnotation, "app", `service account app: annotation azure.workload.identity/client-id: "app": must be a GUID`},
		"tenant":     {inject.TenantIDAnnotation, "a/b", `service account app: annotation azure.workload.identity/tenant-id: "a/b": must be a tenant's ID (a GUID) or its domain`},
		"a word":     {inject.TenantIDAnnotation, "junk", `service account app: annotation azure.workload.identity/tenant-id: "junk": must be a tenant's ID (a GUID) or its domain`},
		"too long":   {inject.TenantIDAnnotation, strings.Repeat("a.", 126) + "ab", `service account app: annotation azure.workload.identity/tenant-id: "a.a`},
		"expiration": {inject.TokenExpirationAnnotation, "soon", `service account app: annotation azure.workload.identity/service-account-token-expiration: "soon": must be between 3600 and 86400 seconds`},
	} {
		t.Run(name, func(t *testing.T) {
			a := account()
			a.Annotations[c.annotation] = c.value
			_, err := inject.Pod(labelled(), a, config())
			checkRefusal(t, err, c.want)
		})
	}
}

// TestMissingIdentity checks that settings are refused that the proxy would refuse at its start.
func TestMissingIdentity(t *testing.T) {
	c := config()
	c.TenantID = ""
	_, err := inject.Pod(injected(), account(), c)
	checkRefusal(t, err, "service account app: annotation azure.workload.identity/tenant-id is required: the configuration has no tenant")
	_, err = inject.Pod(injected(annotate(inject.PrefetchAnnotation, "https://vault.azure.net")), nil, config())
	checkRefusal(t, err, "the pod's service account: annotation azure.workload.identity/client-id is required with the pod's annotation imds-oidc-proxy/prefetch: tokens are prefetched for this client ID")
}

// TestNotRefused has pods that are similar to refused ones.
func TestNotRefused(t *testing.T) {
	for name, pod := range map[string]*corev1.Pod{
		"hostNetwork without the proxy":  labelled(func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
		"windows without the proxy":      labelled(func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }),
		"1501 sealed":                    injected(runAs(1501), annotate(inject.RedirectAnnotation, "sealed")),
		"1501 sealed by the CNI plugin":  injected(runAs(1501), annotate(inject.RedirectAnnotation, "cni-sealed")),
		"1501 without a redirect":        injected(runAs(1501), annotate(inject.RedirectAnnotation, "none")),
		"1501 overridden":                injected(podRunsAs(1501), runAs(1000)),
		"UDP 8000":                       injected(listens(8000, corev1.ProtocolUDP)),
		"SCTP 8000":                      injected(listens(8000, corev1.ProtocolSCTP)),
		"the proxy's name, not injected": labelled(func(p *corev1.Pod) { p.Spec.Containers[0].Name = "azwi-proxy" }),
		"8000 with another port":         injected(listens(8000, ""), annotate(inject.ProxyPortAnnotation, "8080")),
		"another annotation":             injected(annotate("example.test/redirects", "x")),
		"an empty expiration":            labelled(annotate(inject.TokenExpirationAnnotation, "")),
		"another path, own token": labelled(func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "mine", MountPath: "/var/run/secrets/azure/wi"}}
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "AZURE_FEDERATED_TOKEN_FILE", Value: "/var/run/secrets/azure/wi/x"}}
		}),
	} {
		if _, err := inject.Pod(pod, account(), config()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
