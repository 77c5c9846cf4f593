package inject

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

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
	if v.Projected == nil || v.Projected.DefaultMode == nil || p.settings.redirect == redirectNone && p.oneUser(proxyID) {
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

func (p *plan) oneUser(user int64) bool {
	all := p.userOfAll()
	return all != nil && *all == user
}

// userOfAll is the user of the pod's own containers. Nil: it is not said, or they have
// several.
func (p *plan) userOfAll() *int64 {
	var all *int64
	for _, c := range places(p.pod) {
		if c.ours() {
			continue
		}
		user, _ := userOf(p.pod, c)
		if user == nil || all != nil && *all != *user {
			return nil
		}
		all = user
	}
	return all
}
