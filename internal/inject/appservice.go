package inject

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

const (
	// appServiceHeaderEnv is the variable of the proxy's --app-service-header.
	appServiceHeaderEnv = "PROXY_APP_SERVICE_HEADER"

	// uidField is the field of the pod that is the secret of App Service's protocol. A request
	// that another program was made to send (SSRF) does not know it. Whoever may read pods does.
	uidField = "metadata.uid"

	loopback = "127.0.0.1"
)

// appServiceNames are the variables of both versions of App Service's protocol. A container gets
// all of them or none. With IDENTITY_ENDPOINT alone, azure-identity (Python) 1.5 to 1.8 fail. With
// MSI_ENDPOINT alone, azidentity (Go) up to 1.5.2 and azure-identity (Java) 1.15 take it for Cloud
// Shell's, and get the default identity's token for a request that names another one.
var appServiceNames = []string{azure.EnvIdentityEndpoint, azure.EnvIdentityHeader, azure.EnvMSIEndpoint, azure.EnvMSISecret}

// servesAppService reports whether the application's containers get these variables. Without a
// redirect they do by default: most clients that ignore AZURE_POD_IDENTITY_AUTHORITY_HOST use them
// (docs/adr/0053).
func (s *settings) servesAppService() bool {
	if s.appService != nil {
		return *s.appService
	}
	return s.redirect == redirectNone
}

// podUID returns a variable whose value is the pod's UID. The kubelet sets it, so that neither the
// pod nor a manifest contains it.
func podUID(name string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: uidField}}}
}

// appServiceValues returns the variables for a proxy at a port.
func appServiceValues(port string) []corev1.EnvVar {
	endpoint := imdsHost(port) + azure.AppServicePath
	return []corev1.EnvVar{
		{Name: azure.EnvIdentityEndpoint, Value: endpoint}, podUID(azure.EnvIdentityHeader),
		{Name: azure.EnvMSIEndpoint, Value: endpoint}, podUID(azure.EnvMSISecret),
	}
}

// appServiceEnv returns the variables for a container, unless it has one of them of its own.
func (p *plan) appServiceEnv(c containerRef) []corev1.EnvVar {
	if s := p.settings; s.inject && s.servesAppService() && p.ownAppService(c, appServiceNames...) == "" {
		return appServiceValues(decimal(s.port))
	}
	return nil
}

// ownAppService returns the first of these names that is a variable of the container's author,
// or "".
func (p *plan) ownAppService(c containerRef, names ...string) string {
	written := p.writtenIn(c)
	var ours []corev1.EnvVar
	if p.settings.servesAppService() {
		ours = appServiceValues(decimal(p.settings.port))
	}
	for i, e := range c.Env {
		same := func(our corev1.EnvVar) bool { return our.Name == e.Name && valueText(our) == valueText(e) }
		if slices.Contains(names, e.Name) && !written(i) && !slices.ContainsFunc(ours, same) {
			return e.Name
		}
	}
	return ""
}

// addAppService adds the values that an earlier pass wrote, if the proxy that it injected serves
// the protocol.
func addAppService(earlier map[string]string, proxy *corev1.Container) {
	port := variable(proxy, "PROXY_PORT")
	if port < 0 || !hasEnv(*proxy, appServiceHeaderEnv) {
		return
	}
	for _, e := range appServiceValues(proxy.Env[port].Value) {
		earlier[e.Name] = valueText(e)
	}
}

// isAppService reports whether [Pod] may have written the variable.
func isAppService(e corev1.EnvVar) bool {
	switch e.Name {
	case azure.EnvIdentityEndpoint, azure.EnvMSIEndpoint:
		return strings.HasPrefix(e.Value, "http://"+loopback+":") && strings.HasSuffix(e.Value, azure.AppServicePath)
	case azure.EnvIdentityHeader, azure.EnvMSISecret:
		return valueText(e) == valueText(podUID(e.Name))
	}
	return false
}

// warnOwnAppService warns about variables of the author, with which SDKs request tokens elsewhere.
func (p *plan) warnOwnAppService(c containerRef) {
	if !p.settings.servesAppService() {
		if name := p.ownAppService(c, azure.EnvIdentityEndpoint, azure.EnvMSIEndpoint); name != "" {
			p.warnf("container %q sets %s: SDKs then request tokens at that endpoint and not from the proxy; remove the variable", shorten(c.Name), name)
		}
		return
	}
	if name := p.ownAppService(c, appServiceNames...); name != "" && p.takesToken(c) {
		p.warnf("container %q sets %s and keeps it: it gets none of %s for the proxy; remove the variable, or set annotation %s: \"false\"",
			shorten(c.Name), name, strings.Join(appServiceNames, ", "), AppServiceAnnotation)
	}
}

// warnNoRedirect warns about what a pod without a redirect lacks.
func (p *plan) warnNoRedirect() {
	which := "only clients that use " + azure.EnvIMDSHost
	if p.settings.servesAppService() {
		which += ", " + azure.EnvIdentityEndpoint + " or " + azure.EnvMSIEndpoint
	}
	source := "annotation " + RedirectAnnotation
	if _, given := p.pod.Annotations[RedirectAnnotation]; !given {
		source = "the configured redirect"
	}
	p.warnf("%s is none: %s get tokens from the proxy, and the pod can reach the node's IMDS; deny egress to %s by a NetworkPolicy, such as that of deploy/no-redirect",
		source, which, azure.MetadataIP)
}
