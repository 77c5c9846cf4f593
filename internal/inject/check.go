package inject

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

// check refuses what cannot work, or would not keep what it promises.
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
		return refuse("spec.hostNetwork", "true: the redirect would be the node's, for all its pods; write false, or remove annotation %s", InjectProxyAnnotation)
	case pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows:
		return refuse("spec.os.name", "windows: redirect and proxy are for Linux; remove annotation %s", InjectProxyAnnotation)
	case pod.Spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows):
		return refuse("spec.nodeSelector", "windows: redirect and proxy are for Linux; remove annotation %s", InjectProxyAnnotation)
	}
	return nil
}

// checkNames: what has our names is replaced, and of such a pod nothing would be left.
func checkNames(pod *corev1.Pod) error {
	list := pod.Spec.Containers
	if len(list) == 0 || slices.ContainsFunc(list, func(c corev1.Container) bool { return !isOurs(c) }) {
		return nil
	}
	return refuse("spec.containers["+list[0].Name+"].name", "the name is for the container that is injected, and the pod has no other; write another name")
}

func (s *settings) checkPorts(pod *corev1.Pod) error {
	if s.adminPort == s.port {
		return refuse("annotation "+AdminPortAnnotation, "%d is the port of the proxy; write another", s.port)
	}
	for _, c := range authors(pod) {
		for _, port := range c.Ports {
			if port.Protocol == corev1.ProtocolUDP || port.Protocol == corev1.ProtocolSCTP {
				continue
			}
			switch {
			case port.ContainerPort == s.port:
				return refuse("annotation "+ProxyPortAnnotation, "container %q listens on port %d; write a port that no container declares", shorten(c.Name), s.port)
			case port.ContainerPort == s.adminPort && s.adminPort != 0:
				return refuse("annotation "+AdminPortAnnotation, "container %q listens on port %d; write a port that no container declares", shorten(c.Name), s.adminPort)
			}
		}
	}
	return nil
}

// checkUser: the redirect lets the proxy's user pass, to forward instance metadata.
// Whoever else is that user reaches the node's IMDS, and with it its identity.
func (s *settings) checkUser(pod *corev1.Pod) error {
	if s.redirect != redirectForward {
		return nil
	}
	for _, c := range authors(pod) {
		user, where := userOf(pod, c)
		if user != nil && *user == azure.ProxyID {
			return refuse(where, "%d is the proxy's own user, which the redirect lets pass to the node's IMDS; write another user, or %s: %s", azure.ProxyID, RedirectAnnotation, redirectSealed)
		}
	}
	return nil
}

// userOf is the user that a container is said to run as, and where. Nil: that of its image.
func userOf(pod *corev1.Pod, c place) (user *int64, where string) {
	if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
		return c.SecurityContext.RunAsUser, c.field("securityContext.runAsUser")
	}
	if pod.Spec.SecurityContext != nil {
		return pod.Spec.SecurityContext.RunAsUser, "spec.securityContext.runAsUser"
	}
	return nil, ""
}

// checkIdentity refuses what the proxy would refuse at its start, where it is harder
// to find.
func (s *settings) checkIdentity(account *corev1.ServiceAccount) error {
	switch {
	case s.TenantID == "":
		return refuse(accountName(account), "write annotation %s: the proxy needs a tenant, and the configuration has none", TenantIDAnnotation)
	case s.prefetch.text != "" && s.clientID == "":
		return refuse(accountName(account), "write annotation %s: tokens are fetched ahead for that identity, as %s asks", ClientIDAnnotation, PrefetchAnnotation)
	case len(s.prefetch.items) > azure.MaxPrefetch:
		return refuse("annotation "+PrefetchAnnotation, "lists %d resources: must be at most %d", len(s.prefetch.items), azure.MaxPrefetch)
	case s.clientID != "" && !s.allows(s.clientID):
		return refuse("annotation "+AllowedClientIDsAnnotation, "add %s, the client ID of %s", s.clientID, accountName(account))
	}
	if _, err := azure.Identities(s.identities.items); err != nil {
		return refuse("annotation "+IdentitiesAnnotation, "%v", err)
	}
	for _, i := range s.identities.items {
		if !s.allows(i.ClientID) {
			return refuse("annotation "+AllowedClientIDsAnnotation, "add %s, which %s names", i.ClientID, IdentitiesAnnotation)
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

// Who may read a projected token: the kubelet gives it to the user of all containers,
// where they have one, else to the pod's fsGroup, else to root, and to whom the volume's
// mode lets. With the proxy a pod has two users, or three with the redirect.

const (
	readableByAll   = 0o004
	readableByGroup = 0o040
)

// rootOnly reports whether a volume has a token that, with the proxy in the pod, root
// alone may read.
func (p *plan) rootOnly(v corev1.Volume) bool {
	user := p.userOfAll()
	sameUser := p.settings.redirect == redirectNone && user != nil && *user == azure.ProxyID
	if v.Projected == nil || v.Projected.DefaultMode == nil || sameUser {
		return false
	}
	mode := *v.Projected.DefaultMode
	if s := p.pod.Spec.SecurityContext; s != nil {
		inRootsGroup := slices.Contains(s.SupplementalGroups, 0)
		if s.FSGroup != nil || inRootsGroup && mode&readableByGroup != 0 {
			return false
		}
	}
	return mode&readableByAll == 0 &&
		slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.ServiceAccountToken != nil })
}

// checkTokenMode: the proxy is to read the author's token.
func (p *plan) checkTokenMode() error {
	if !p.settings.inject || !p.token.fits {
		return nil
	}
	volume := p.pod.Spec.Volumes[p.token.index]
	if !p.rootOnly(volume) {
		return nil
	}
	return refuse(fmt.Sprintf("spec.volumes[%s].projected.defaultMode", shorten(volume.Name)),
		"%#o: the proxy's user may not read the token; write 0444, or a spec.securityContext.fsGroup", *volume.Projected.DefaultMode)
}

// warnTokenMode is for other tokens, which the application reads as the one user of the
// pod, and does not when there are two.
func (p *plan) warnTokenMode() {
	if user := p.userOfAll(); user == nil || *user == 0 {
		return
	}
	for _, volume := range p.pod.Spec.Volumes {
		if p.rootOnly(volume) {
			p.warnf("volume %q: with the proxy's user in the pod, its defaultMode %#o keeps the application from the token; write 0444, or a spec.securityContext.fsGroup",
				shorten(volume.Name), *volume.Projected.DefaultMode)
		}
	}
}

// userOfAll is the user of the pod's own containers. Nil: it is not said, or they have
// several.
func (p *plan) userOfAll() *int64 {
	var all *int64
	for _, c := range authors(p.pod) {
		user, _ := userOf(p.pod, c)
		if user == nil || all != nil && *all != *user {
			return nil
		}
		all = user
	}
	return all
}
