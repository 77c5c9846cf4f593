package inject

import (
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

// binding is what the injected proxy needs for an identity binding of AKS, besides the token. It
// is empty in a pod without one.
type binding struct {
	env    []corev1.EnvVar
	mounts []corev1.VolumeMount
}

// bindingEnv is the variables with which AKS's webhook names the token proxy and its certificate
// authorities.
var bindingEnv = []string{azure.EnvTokenProxy, azure.EnvSNIName, azure.EnvCAFile, azure.EnvCAData}

// isBinding reports whether AKS's webhook writes the variable in this pod. No other variable of
// that name is compared with those that this package writes.
func (p *plan) isBinding(name string) bool {
	return p.settings.bound && slices.Contains(bindingEnv, name)
}

// locateBinding finds what AKS's webhook has put into the containers of a pod with
// [IdentityBindingAnnotation]: the variables of the token proxy, and the volume with its
// certificate authorities. The injected proxy gets the same.
//
// AKS's webhook is azure-workload-identity's. It adds the variables, the projected token and the
// authorities to each container, also to an injected one, unless the container has them. So the
// pod has a container with the variables in each order of the two webhooks, once both have run. If
// there is none yet, only the audience of the token is set: the other webhook then adds the rest
// to the injected proxy. This is also the case for manifests.
func (p *plan) locateBinding() error {
	if !p.settings.bound {
		return nil
	}
	for _, name := range bindingEnv {
		delete(p.earlier, name) // the other webhook wrote it
	}
	c, found := boundContainer(p.pod)
	if !found || !p.settings.inject {
		return nil
	}
	return p.takeBinding(c)
}

// boundContainer returns the first container with the URL of a token proxy. The author's
// containers come first: the values in an injected one may be those of an earlier call.
func boundContainer(pod *corev1.Pod) (containerRef, bool) {
	for _, list := range [][]containerRef{authorContainers(pod), allContainers(pod)} {
		for _, c := range list {
			if literal(c, azure.EnvTokenProxy) != "" {
				return c, true
			}
		}
	}
	return containerRef{}, false
}

// literal returns the value of a container's variable. It is empty for a reference to a ConfigMap
// or the like.
func literal(c containerRef, name string) string {
	i := variable(c.Container, name)
	if i < 0 {
		return ""
	}
	return c.Env[i].Value
}

// takeBinding copies the variables of a container. It refuses values with which the proxy would
// not start.
func (p *plan) takeBinding(c containerRef) error {
	if _, err := azure.ParseTokenProxy(literal(c, azure.EnvTokenProxy)); err != nil {
		return refuse(c.variable(azure.EnvTokenProxy), "%v", err)
	}
	data := literal(c, azure.EnvCAData)
	if data != "" {
		if _, err := parseCertificates(data); err != nil {
			return refuse(c.variable(azure.EnvCAData), "%v", err)
		}
	}
	file, err := p.bindingFile(c, literal(c, azure.EnvCAFile), data != "")
	if err != nil {
		return err
	}
	p.binding.env = withoutEmpty([]corev1.EnvVar{
		{Name: azure.EnvTokenProxy, Value: literal(c, azure.EnvTokenProxy)},
		{Name: azure.EnvSNIName, Value: literal(c, azure.EnvSNIName)},
		{Name: azure.EnvCAFile, Value: file},
		{Name: azure.EnvCAData, Value: data},
	})
	return nil
}

// variable returns the path of a variable for the pod's author.
func (c containerRef) variable(name string) string { return c.field("env[" + name + "]") }

// bindingFile returns the path of the certificate authorities in the proxy, and adds the mount of
// their volume. AKS has them in the volume of the token.
//
// azure-workload-identity's webhook sets the path also if the authorities are in
// AZURE_KUBERNETES_CA_DATA, where there is no such file. The proxy then uses the data.
func (p *plan) bindingFile(c containerRef, file string, optional bool) (string, error) {
	if file == "" {
		return "", nil
	}
	where := c.variable(azure.EnvCAFile)
	m := mountWith(c.Container, file)
	switch {
	case m == nil && optional:
		return file, nil
	case m == nil:
		return "", refuse(where, "%s is in no volume of the container, so the proxy cannot read it; mount a volume there, or use %s", shorten(file), azure.EnvCAData)
	case m.SubPathExpr != "":
		return "", refuse(where, "%s is in a mount with subPathExpr, which the proxy cannot have; use subPath", shorten(file))
	case m.Name == p.token.volume && m.SubPath == "":
		return path.Join(p.token.mountPath, strings.TrimPrefix(path.Clean(file), path.Clean(m.MountPath))), nil
	case path.Clean(m.MountPath) == path.Clean(p.token.mountPath) || isConfigMapPath(m.MountPath):
		return "", refuse(where, "volume %q is mounted at %s, where the proxy has another volume; use another path", shorten(m.Name), shorten(m.MountPath))
	}
	p.binding.mounts = []corev1.VolumeMount{{Name: m.Name, MountPath: m.MountPath, SubPath: m.SubPath, ReadOnly: true}}
	return file, nil
}

// mountWith returns the mount of a container that has the file: of nested mounts, the innermost.
func mountWith(c *corev1.Container, file string) *corev1.VolumeMount {
	var found *corev1.VolumeMount
	file = path.Clean(file)
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		has := inDir(file, m.MountPath) || file == path.Clean(m.MountPath)
		if has && (found == nil || len(path.Clean(m.MountPath)) > len(path.Clean(found.MountPath))) {
			found = m
		}
	}
	return found
}
