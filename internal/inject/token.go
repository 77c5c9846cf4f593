package inject

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

const (
	// VolumePrefix is the prefix of the volume that azure-workload-identity (v1.6.0) adds. A
	// hash of the pod's name follows. This package uses the same name, so that the other
	// webhook, if it runs later, does not add a second volume: it replaces the volume and
	// the mounts of that name.
	VolumePrefix = "azure-workload-identity-reserved-"

	// maxVolumeName is the maximum length of a volume's name. The hash is cut to fit.
	maxVolumeName = 63

	// maxCopied is the maximum length of an author's path that is copied into the other
	// containers. Without a limit, the size of the patch would be the product of this length
	// and the number of containers.
	maxCopied = 512

	// azwiMountPath is the mount path of v1.6.0.
	azwiMountPath = "/var/run/secrets/azure/wi"

	// templateMountPath is the mount path for pods without a name, which are templates in a
	// manifest. The created pod has a name, so that azure-workload-identity's webhook adds
	// a volume of another name. Its mount must not have the same path as ours.
	templateMountPath = "/var/run/secrets/azure/imds-oidc-proxy"

	// secretsRoot is the common parent directory.
	secretsRoot = "/var/run/secrets/azure"

	tokenPath = "token/azure-identity-token"
	caPath    = "ca-cert/ca.crt"
	// caKey is the key of the ConfigMap with the certificate authorities.
	caKey = "ca.crt"
)

// token is the projected volume with the federated token.
type token struct {
	volume string
	// index is the index of the volume. -1: the volume must be added.
	index int
	// usable is true if the volume exists and contains everything that is needed.
	usable bool
	// mountPath is the mount path for containers that do not mount the volume yet.
	mountPath string
	// path is the path of the token in the volume, and ca that of the certificate
	// authorities. If it is empty, there are none.
	path, ca string
}

// volumeName returns the name of the volume for this pod, which is the same in
// azure-workload-identity.
func volumeName(pod *corev1.Pod) string {
	name := pod.Name
	if name == "" {
		name = pod.GenerateName + " (prefix)"
	}
	hash := sha256.Sum256([]byte(name))
	return (VolumePrefix + hex.EncodeToString(hash[:]))[:maxVolumeName]
}

// locateToken finds a volume that already contains the token: another webhook's, the author's,
// or ours with the hash of another name of the pod. If there is none, it determines where to add
// one.
func (p *plan) locateToken() {
	name := volumeName(p.pod)
	t := token{volume: name, index: -1, mountPath: azwiMountPath, path: tokenPath}
	if p.pod.Name == "" && p.pod.GenerateName == "" {
		t.mountPath = templateMountPath
	}
	if e := p.settings.endpoint; e != nil && e.CAConfigMap+e.ClusterTrustBundleSigner != "" {
		t.ca = caPath
	}
	for i, volume := range p.pod.Spec.Volumes {
		found, usable := p.projectedToken(volume, t.ca)
		switch {
		case usable && !t.usable && len(volume.Name) <= maxVolumeName && len(found) <= maxCopied:
			t.volume, t.index, t.usable, t.path = volume.Name, i, true, found
		case volume.Name == name && !t.usable:
			t.index = i
		}
	}
	t.mountPath = mountedAt(p.pod, t.volume, t.mountPath)
	p.token = t
}

// projectedToken returns the path of a token with the right audience in a volume, and reports
// whether the volume also has the certificate authorities that are needed.
func (p *plan) projectedToken(volume corev1.Volume, ca string) (string, bool) {
	if volume.Projected == nil {
		return "", false
	}
	var found string
	hasCA := ca == ""
	for _, source := range volume.Projected.Sources {
		if t := source.ServiceAccountToken; t != nil && t.Audience == p.settings.Audience {
			found = t.Path
		}
		if c := source.ConfigMap; c != nil {
			hasCA = hasCA || slices.ContainsFunc(c.Items, func(item corev1.KeyToPath) bool { return item.Path == ca })
		}
		if b := source.ClusterTrustBundle; b != nil && b.Path == ca {
			hasCA = true
		}
	}
	return found, found != "" && hasCA
}

// mountedAt returns the path at which the first container with the volume mounts it, or fallback.
func mountedAt(pod *corev1.Pod, volume, fallback string) string {
	for _, c := range allContainers(pod) {
		if m := mountOf(c.Container, volume); m != nil && len(m.MountPath) <= maxCopied {
			return m.MountPath
		}
	}
	return fallback
}

func mountOf(c *corev1.Container, volume string) *corev1.VolumeMount {
	i := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.Name == volume && m.SubPath == "" && m.SubPathExpr == ""
	})
	if i < 0 {
		return nil
	}
	return &c.VolumeMounts[i]
}

// tokenVolume adds the volume, replaces it, or updates the expiration in it. It returns how many
// volumes the pod then has.
func (p *plan) tokenVolume() (count int) {
	count = len(p.pod.Spec.Volumes)
	switch {
	case p.token.usable:
		p.tokenExpiration()
	case p.token.index >= 0:
		p.replace(at(volumes, p.token.index), p.newVolume())
	default:
		appendAll(p, volumes, count, []corev1.Volume{p.newVolume()})
		count++
	}
	return count
}

// tokenExpiration sets the expiration of the annotation in a webhook's volume. It does not change
// a volume of the author.
func (p *plan) tokenExpiration() {
	volume := p.pod.Spec.Volumes[p.token.index]
	for i, source := range volume.Projected.Sources {
		t := source.ServiceAccountToken
		if t == nil || t.Audience != p.settings.Audience || !p.settings.expirationSet {
			continue
		}
		if t.ExpirationSeconds != nil && *t.ExpirationSeconds == p.settings.expiration {
			continue
		}
		if !reserved(volume.Name) {
			p.warnf("annotation %s has no effect: volume %q of the pod already has a projected token; set expirationSeconds there", TokenExpirationAnnotation, volume.Name)
			continue
		}
		// The operation add also replaces an existing value.
		p.add(at(at(volumes, p.token.index)+"/projected/sources", i)+"/serviceAccountToken/expirationSeconds", p.settings.expiration)
	}
}

func (p *plan) newVolume() corev1.Volume {
	sources := []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
		Path:              tokenPath,
		Audience:          p.settings.Audience,
		ExpirationSeconds: &p.settings.expiration,
	}}}
	if ca := p.settings.endpoint.authorities(); ca != nil {
		sources = append(sources, *ca)
	}
	return corev1.Volume{
		Name:         volumeName(p.pod),
		VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources}},
	}
}

// authorities returns the projection of the certificate authorities of the token endpoint, or
// nil. The projection is not optional: without the authorities the pod would get no tokens, so it
// must not start.
func (e *TokenEndpoint) authorities() *corev1.VolumeProjection {
	switch {
	case e == nil:
		return nil
	case e.CAConfigMap != "":
		return &corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: e.CAConfigMap},
			Items:                []corev1.KeyToPath{{Key: caKey, Path: caPath}},
			Optional:             new(false),
		}}
	case e.ClusterTrustBundleSigner != "":
		return &corev1.VolumeProjection{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{
			SignerName:    &e.ClusterTrustBundleSigner,
			LabelSelector: e.ClusterTrustBundleLabels.DeepCopy(),
			Path:          caPath,
			Optional:      new(false),
		}}
	}
	return nil
}

// tokenFile returns the token's path in a container that mounts the volume at mountPath.
func (t token) tokenFile(mountPath string) string { return path.Join(mountPath, t.path) }

func (t token) caFile(mountPath string) string {
	if t.ca == "" {
		return ""
	}
	return path.Join(mountPath, t.ca)
}
