package inject

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

const (
	// VolumePrefix begins the volume that azure-workload-identity (v1.6.0) adds, with
	// a hash of the pod's name after it. The same name here is what keeps its
	// webhook, when it comes after us, from adding a second one: it replaces what has
	// that name, in the pod and in each container.
	VolumePrefix = "azure-workload-identity-reserved-"

	// maxVolumeName is what the API server allows, and so how much of the hash fits.
	maxVolumeName = 63

	// azwiMountPath is where v1.6.0 mounts it.
	azwiMountPath = "/var/run/secrets/azure/wi"

	// templateMountPath is for pods without a name, which are templates in a
	// manifest. The pod made of one has another name, and so would another volume by
	// azure-workload-identity's webhook, whose mount may not share a path with ours.
	templateMountPath = "/var/run/secrets/azure/imds-oidc-proxy"

	// secretsRoot is above all of these.
	secretsRoot = "/var/run/secrets/azure"

	tokenPath = "token/azure-identity-token"
	caPath    = "ca-cert/ca.crt"
	// caKey is the key of the config map that holds the authorities.
	caKey = "ca.crt"
)

// token is the projected volume with the federated token.
type token struct {
	volume string
	// index is the volume's. -1: it is to be added.
	index int
	// fits says that the volume is there and holds what is needed.
	fits bool
	// mountPath is for containers that do not mount it yet.
	mountPath string
	// path is the token's, and ca the authorities', in the volume. Empty: none.
	path, ca string
}

// volumeName is the name for this pod, which azure-workload-identity finds too.
func volumeName(pod *corev1.Pod) string {
	name := pod.Name
	if name == "" {
		name = pod.GenerateName + " (prefix)"
	}
	hash := sha256.Sum256([]byte(name))
	return (VolumePrefix + hex.EncodeToString(hash[:]))[:maxVolumeName]
}

// locateToken finds a volume that already holds the token, such as another webhook's,
// the author's own, or ours under a name that the pod had before; or says where a new
// one goes.
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
		found, fits := p.projectedToken(volume, t.ca)
		switch {
		case fits && !t.fits:
			t.volume, t.index, t.fits, t.path = volume.Name, i, true, found
		case volume.Name == name && !t.fits:
			t.index = i
		}
	}
	t.mountPath = mountedAt(p.pod, t.volume, t.mountPath)
	p.token = t
}

// projectedToken is the path of a token of our audience in a volume.
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

// mountedAt is where the pod's containers mount a volume.
func mountedAt(pod *corev1.Pod, volume, fallback string) string {
	for _, c := range places(pod) {
		if m := mountOf(c.Container, volume); m != nil {
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

// tokenVolume adds the volume, or has the one that is there do.
func (p *plan) tokenVolume() {
	switch {
	case p.token.fits:
		p.tokenExpiration()
	case p.token.index >= 0:
		p.replace(at(volumes, p.token.index), p.newVolume())
	default:
		appendAll(p, volumes, len(p.pod.Spec.Volumes), []corev1.Volume{p.newVolume()})
	}
}

// tokenExpiration has a webhook's volume follow the annotation. The author's own
// volume says what its author wants.
func (p *plan) tokenExpiration() {
	volume := p.pod.Spec.Volumes[p.token.index]
	for i, source := range volume.Projected.Sources {
		t := source.ServiceAccountToken
		if t == nil || t.Audience != p.settings.Audience || !p.settings.expirationSaid {
			continue
		}
		if t.ExpirationSeconds != nil && *t.ExpirationSeconds == p.settings.expiration {
			continue
		}
		if !reserved(volume.Name) {
			p.warnf("annotation %s has no effect: the pod already projects a token, in volume %q; say expirationSeconds there", TokenExpirationAnnotation, volume.Name)
			continue
		}
		// Add is right where it is not there yet, and replaces what is.
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

// authorities projects those that the token endpoint's certificate is checked with.
// They are needed: without them no token can be had, so better no pod.
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

// tokenFile is the token's path, for a container that mounts the volume there.
func (t token) tokenFile(mountPath string) string { return path.Join(mountPath, t.path) }

func (t token) caFile(mountPath string) string {
	if t.ca == "" {
		return ""
	}
	return path.Join(mountPath, t.ca)
}
