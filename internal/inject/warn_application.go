package inject

import (
	"net/netip"
	"slices"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// aadPodLabel is the label with which aad-pod-identity, the predecessor of workload identity,
// selects a pod's identity.
const aadPodLabel = "aadpodidbinding"

// warnApplication warns about settings of the application with which it gets no token from the
// proxy, although the pod is injected.
func (p *plan) warnApplication() {
	for _, c := range authorContainers(p.pod) {
		for _, address := range p.settings.tokenAddresses() {
			p.warnHTTPProxy(c, address)
		}
		p.warnOwnAppService(c)
		p.warnSharedProcesses(c)
	}
}

// tokenAddresses returns the addresses to which clients send their token requests.
func (s *settings) tokenAddresses() []string {
	switch {
	case s.redirect == redirectNone:
		return []string{loopback}
	case s.servesAppService():
		return []string{azure.MetadataIP, loopback}
	}
	return []string{azure.MetadataIP}
}

// warnHTTPProxy warns about an HTTP proxy that receives the application's token requests: the
// redirect sees only connections to the metadata address.
func (p *plan) warnHTTPProxy(c containerRef, address string) {
	set, excluded := false, false
	for _, e := range c.Env {
		switch strings.ToUpper(e.Name) {
		case "HTTP_PROXY", "ALL_PROXY":
			set = set || e.Value != "" || e.ValueFrom != nil
		case "NO_PROXY":
			// The value of a reference is unknown.
			excluded = excluded || e.ValueFrom != nil || strings.Contains(e.Value, "$(") || excludes(e.Value, address)
		}
	}
	if set && !excluded {
		p.warnf("container %q sets HTTP_PROXY, and its NO_PROXY does not contain %s: many clients send token requests to that proxy; add the address to NO_PROXY", shorten(c.Name), address)
	}
}

// excludes reports whether a NO_PROXY contains an address, itself or in a CIDR block.
func excludes(noProxy, address string) bool {
	ip := netip.MustParseAddr(address)
	return slices.ContainsFunc(strings.FieldsFunc(noProxy, func(r rune) bool { return r == ',' || r == ' ' }), func(item string) bool {
		block, err := netip.ParsePrefix(item)
		return item == "*" || item == address || item == address+":80" || err == nil && block.Contains(ip)
	})
}

// warnSharedProcesses warns about a container that may read the memory of the proxy, with its
// tokens: the kernel allows it to processes of the same user in one PID namespace.
func (p *plan) warnSharedProcesses(c containerRef) {
	share := p.pod.Spec.ShareProcessNamespace
	if user, where := userOf(p.pod, c); share != nil && *share && user != nil && *user == azure.ProxyID {
		p.warnf("%s: %d is the proxy's user, and with spec.shareProcessNamespace container %q can read the proxy's memory; use another user", where, azure.ProxyID, shorten(c.Name))
	}
}

// warnAADPodIdentity warns about a label that has no effect here and that selects an identity
// which the pod does not get.
func (p *plan) warnAADPodIdentity() {
	if _, left := p.pod.Labels[aadPodLabel]; left {
		p.warnf("label %s is of aad-pod-identity and has no effect here: annotation %s of the service account names the identity; remove the label when aad-pod-identity no longer serves the pod", aadPodLabel, ClientIDAnnotation)
	}
}
