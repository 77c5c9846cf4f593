package inject

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

// check refuses pods in which the proxy cannot work, or in which the redirect would not protect
// the node's identity.
func (s *settings) check(pod *corev1.Pod, account *corev1.ServiceAccount) error {
	if !s.inject {
		return nil
	}
	for _, check := range []func(*corev1.Pod) error{checkPlatform, checkNames, s.checkPorts, s.checkUser} {
		if err := check(pod); err != nil {
			return err
		}
	}
	return s.checkIdentity(account)
}

func checkPlatform(pod *corev1.Pod) error {
	switch {
	case pod.Spec.HostNetwork:
		return refuse("spec.hostNetwork", "true: the redirect would apply to the node and all its pods; set it to false, or remove annotation %s", InjectProxyAnnotation)
	case pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows:
		return refuse("spec.os.name", "windows: the redirect and the proxy need Linux; remove annotation %s", InjectProxyAnnotation)
	case pod.Spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows):
		return refuse("spec.nodeSelector", "windows: the redirect and the proxy need Linux; remove annotation %s", InjectProxyAnnotation)
	}
	return nil
}

// maxReplaced is how many containers of one list are replaced by the injected ones. One of each name
// is valid, and other webhooks may add a second one. The API server copies the whole list for each
// container that is removed.
const maxReplaced = 8

func count[T any](list []T, of func(T) bool) (n int) {
	for _, e := range list {
		if of(e) {
			n++
		}
	}
	return n
}

// checkNames refuses a pod whose containers all have the names of injected containers. Injection
// replaces containers with these names, so the pod would have no other container.
func checkNames(pod *corev1.Pod) error {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		if n := count(list, isOurs); n > maxReplaced {
			return refuse("spec", "%d containers of one list are named %s or %s, the names of the injected containers: must be at most %d", n, ProxyName, ProxyInitName, maxReplaced)
		}
	}
	list := pod.Spec.Containers
	if len(list) == 0 || slices.ContainsFunc(list, func(c corev1.Container) bool { return !isOurs(c) }) {
		return nil
	}
	return refuse("spec.containers["+list[0].Name+"].name", "this name is reserved for the injected container, and the pod has no other container; use another name")
}

func (s *settings) checkPorts(pod *corev1.Pod) error {
	if s.adminPort == s.port {
		return refuse("annotation "+AdminPortAnnotation, "%d is the port of the proxy; use another port", s.port)
	}
	for _, c := range authorContainers(pod) {
		for _, port := range c.Ports {
			if port.Protocol == corev1.ProtocolUDP || port.Protocol == corev1.ProtocolSCTP {
				continue
			}
			switch {
			case port.ContainerPort == s.port:
				return refuse("annotation "+ProxyPortAnnotation, "container %q listens on port %d; use a port that no container declares", shorten(c.Name), s.port)
			case port.ContainerPort == s.adminPort && s.adminPort != 0:
				return refuse("annotation "+AdminPortAnnotation, "container %q listens on port %d; use a port that no container declares", shorten(c.Name), s.adminPort)
			}
		}
	}
	return nil
}

// checkUser refuses containers that run as the proxy's user. The redirect exempts this user, so
// that the proxy can forward instance metadata. Another process with this user would reach the
// node's IMDS, and could get the node's identity.
func (s *settings) checkUser(pod *corev1.Pod) error {
	if !s.redirect.forwards() {
		return nil
	}
	for _, c := range authorContainers(pod) {
		user, where := userOf(pod, c)
		if user != nil && *user == azure.ProxyID {
			return refuse(where, "%d is the proxy's user, which the redirect does not keep from the node's IMDS; use another user, or annotation %s: %s", azure.ProxyID, RedirectAnnotation, s.redirect.sealedForm())
		}
	}
	return nil
}

// userOf returns the user that a container runs as according to its security context or the
// pod's, and the path of the field. A nil user means the user of the image.
func userOf(pod *corev1.Pod, c containerRef) (user *int64, where string) {
	if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
		return c.SecurityContext.RunAsUser, c.field("securityContext.runAsUser")
	}
	if pod.Spec.SecurityContext != nil {
		return pod.Spec.SecurityContext.RunAsUser, "spec.securityContext.runAsUser"
	}
	return nil, ""
}

// checkIdentity refuses settings that the proxy would refuse at its start, where the error is
// harder to find.
func (s *settings) checkIdentity(account *corev1.ServiceAccount) error {
	allows := s.allows()
	switch {
	case s.TenantID == "":
		return refuse(accountName(account), "annotation %s is required: the configuration has no tenant", TenantIDAnnotation)
	case s.prefetch.text != "" && s.clientID == "":
		return refuse(accountName(account), "annotation %s is required with the pod's annotation %s: tokens are prefetched for this client ID", ClientIDAnnotation, PrefetchAnnotation)
	case len(s.prefetch.items) > azure.MaxPrefetch:
		return refuse("annotation "+PrefetchAnnotation, "lists %d resources: must be at most %d", len(s.prefetch.items), azure.MaxPrefetch)
	case s.clientID != "" && !allows(s.clientID):
		return refuse("annotation "+AllowedClientIDsAnnotation, "must contain %s, the client ID of %s", s.clientID, accountName(account))
	}
	if _, err := azure.Identities(s.identities.items); err != nil {
		return refuse("annotation "+IdentitiesAnnotation, "%v", err)
	}
	for _, i := range s.identities.items {
		if !allows(i.ClientID) {
			return refuse("annotation "+AllowedClientIDsAnnotation, "must contain %s, a client ID in annotation %s", i.ClientID, IdentitiesAnnotation)
		}
	}
	return nil
}

func accountName(account *corev1.ServiceAccount) string {
	if account == nil || account.Name == "" {
		return "the pod's service account"
	}
	return "service account " + account.Name
}

// The kubelet makes a projected token readable for the user of all containers if they have the
// same one, otherwise for the pod's fsGroup if there is one, otherwise for root, and for other
// users as the volume's mode allows. With the proxy a pod has at least two users, with the
// redirect three.

const (
	readableByAll   = 0o004
	readableByGroup = 0o040
)

// rootOnly returns a function that reports whether a volume has a token that only root can read
// once the proxy is in the pod.
func (p *plan) rootOnly() func(corev1.Volume) bool {
	user := p.userOfAll()
	othersRead := p.settings.redirect == redirectNone && user != nil && *user == azure.ProxyID
	readable := int32(readableByAll)
	if s := p.pod.Spec.SecurityContext; s != nil {
		othersRead = othersRead || s.FSGroup != nil
		if slices.Contains(s.SupplementalGroups, 0) {
			readable |= readableByGroup
		}
	}
	return func(v corev1.Volume) bool {
		return !othersRead && v.Projected != nil && v.Projected.DefaultMode != nil && *v.Projected.DefaultMode&readable == 0 &&
			slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.ServiceAccountToken != nil })
	}
}

// checkTokenMode refuses a pod whose own token is used for the proxy, if the proxy cannot read
// it.
func (p *plan) checkTokenMode() error {
	if !p.settings.inject || !p.token.usable {
		return nil
	}
	volume := p.pod.Spec.Volumes[p.token.index]
	if !p.rootOnly()(volume) {
		return nil
	}
	return refuse(fmt.Sprintf("spec.volumes[%s].projected.defaultMode", shorten(volume.Name)),
		"%#o: the proxy's user cannot read the token; set it to 0444, or set spec.securityContext.fsGroup", *volume.Projected.DefaultMode)
}

// warnTokenMode warns about tokens that the application can read only while its user is the only
// user of the pod.
func (p *plan) warnTokenMode() {
	if user := p.userOfAll(); user == nil || *user == 0 {
		return
	}
	rootOnly := p.rootOnly()
	for _, volume := range p.pod.Spec.Volumes {
		if rootOnly(volume) {
			p.warnf("volume %q: with the proxy in the pod, the application cannot read the token, because of the defaultMode %#o; set it to 0444, or set spec.securityContext.fsGroup",
				shorten(volume.Name), *volume.Projected.DefaultMode)
		}
	}
}

// userOfAll returns the user of all application containers. It returns nil if they have
// several users, or if a container has the user of its image.
func (p *plan) userOfAll() *int64 {
	var all *int64
	for _, c := range authorContainers(p.pod) {
		user, _ := userOf(p.pod, c)
		if user == nil || all != nil && *all != *user {
			return nil
		}
		all = user
	}
	return all
}
