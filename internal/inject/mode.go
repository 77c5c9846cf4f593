package inject

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Who may read a projected token: the kubelet gives it to the user of all containers,
// where they have one, else to the pod's fsGroup, else to whom the volume's mode lets.
// With the proxy a pod has two users.

const readableByAll = 0o004

// rootOnly reports whether a volume has a token that, with the proxy in the pod, root
// alone may read.
func rootOnly(pod *corev1.Pod, v corev1.Volume) bool {
	grouped := pod.Spec.SecurityContext != nil && pod.Spec.SecurityContext.FSGroup != nil
	return !grouped && v.Projected != nil && v.Projected.DefaultMode != nil && *v.Projected.DefaultMode&readableByAll == 0 &&
		slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return s.ServiceAccountToken != nil })
}

// checkTokenMode: the proxy is to read the author's token.
func (p *plan) checkTokenMode() error {
	if !p.settings.inject || !p.token.fits {
		return nil
	}
	volume := p.pod.Spec.Volumes[p.token.index]
	if !rootOnly(p.pod, volume) {
		return nil
	}
	return refuse(fmt.Sprintf("spec.volumes[%s].projected.defaultMode", shorten(volume.Name)),
		"%#o: the proxy's user may not read the token; write 0444, or a spec.securityContext.fsGroup", *volume.Projected.DefaultMode)
}

// warnTokenMode is for other tokens, which the application reads as the one user of the
// pod, and does not when there are two.
func (p *plan) warnTokenMode() {
	if !p.oneUser() {
		return
	}
	for _, volume := range p.pod.Spec.Volumes {
		if rootOnly(p.pod, volume) {
			p.warnf("volume %q: with the proxy's user in the pod, its defaultMode %#o keeps the application from the token; write 0444, or a spec.securityContext.fsGroup",
				shorten(volume.Name), *volume.Projected.DefaultMode)
		}
	}
}

// oneUser reports whether the pod's own containers run as one user, and that not root.
func (p *plan) oneUser() bool {
	var one *int64
	for _, c := range places(p.pod) {
		if c.ours() {
			continue
		}
		user, _ := userOf(p.pod, c)
		if user == nil || *user == 0 || one != nil && *one != *user {
			return false
		}
		one = user
	}
	return one != nil
}
