package inject

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

// identityEnv is what workload identity takes, for a container that mounts the token
// there. The token's file comes first: [Remove] knows by it what follows.
func (p *plan) identityEnv(mountPath string) []corev1.EnvVar {
	s := p.settings
	env := []corev1.EnvVar{
		{Name: azure.EnvFederatedTokenFile, Value: p.token.tokenFile(mountPath)},
		{Name: azure.EnvClientID, Value: string(s.clientID)},
		{Name: azure.EnvTenantID, Value: string(s.TenantID)},
		{Name: azure.EnvAuthorityHost, Value: string(s.AuthorityHost)},
	}
	if e := s.endpoint; e != nil {
		env = append(env,
			corev1.EnvVar{Name: azure.EnvTokenProxy, Value: string(e.TokenProxy)},
			corev1.EnvVar{Name: azure.EnvSNIName, Value: e.SNIName},
			corev1.EnvVar{Name: azure.EnvCAFile, Value: p.token.caFile(mountPath)},
			corev1.EnvVar{Name: azure.EnvCAData, Value: e.CAData})
	}
	return withoutEmpty(env)
}

// environments gives the pod's own containers variables and token.
func (p *plan) environments() error {
	for _, c := range places(p.pod) {
		if !p.takesToken(c) {
			continue
		}
		if err := p.environment(c); err != nil {
			return err
		}
	}
	return nil
}

// takesToken: the init container needs no token, and the proxy that is ours is made
// in whole.
func (p *plan) takesToken(c place) bool {
	return c.Name != ProxyInitName &&
		!(c.Name == ProxyName && p.settings.inject) &&
		!slices.Contains(p.settings.skip, c.Name)
}

func (p *plan) environment(c place) error {
	mountPath, mounted, err := p.mountPath(c)
	if err != nil {
		return err
	}
	want := p.identityEnv(mountPath)
	if s := p.settings; s.inject && s.redirect == redirectNone {
		want = append(want, corev1.EnvVar{Name: azure.EnvIMDSHost, Value: fmt.Sprintf("http://127.0.0.1:%d", s.port)})
	}
	var missing []corev1.EnvVar
	for _, env := range want {
		i := variable(c.Container, env.Name)
		switch {
		case i < 0:
			missing = append(missing, env)
		case dangling(c.Container, c.Env[i], mountPath):
			p.replace(at(c.path()+"/env", i)+"/value", env.Value)
		}
	}
	appendAll(p, c.path()+"/env", len(c.Env), missing)
	if !mounted && needsMount(c.Container, missing, mountPath) {
		appendAll(p, c.path()+"/volumeMounts", len(c.VolumeMounts), []corev1.VolumeMount{p.mount(mountPath)})
	}
	p.warnNoToken(c, mountPath)
	p.warnOutdated(c, want)
	return nil
}

// variable is the index of a container's variable. -1: it has none of that name.
func variable(c *corev1.Container, name string) int {
	return slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name })
}

// needsMount: a container whose author says where its token is has no use for ours.
// That it has none of our mounts is also what tells the next pass that the path is the
// author's.
func needsMount(c *corev1.Container, added []corev1.EnvVar, mountPath string) bool {
	i := variable(c, azure.EnvFederatedTokenFile)
	return i < 0 || !isPath(c.Env[i]) || below(c.Env[i].Value, mountPath) ||
		slices.ContainsFunc(added, func(e corev1.EnvVar) bool { return below(e.Value, mountPath) })
}

// isPath reports whether a variable's value can be read here: it is written out, and
// holds no reference to another.
func isPath(e corev1.EnvVar) bool {
	return e.ValueFrom == nil && strings.HasPrefix(e.Value, "/") && !strings.Contains(e.Value, "$(")
}

func (p *plan) mount(mountPath string) corev1.VolumeMount {
	return corev1.VolumeMount{Name: p.token.volume, MountPath: mountPath, ReadOnly: true}
}

// mountPath is where a container has the token, or is to have it. A path can be
// mounted once only: where another volume has it, the container has to bring a token
// of its own, or the pod's author has to make room.
func (p *plan) mountPath(c place) (mountPath string, mounted bool, err error) {
	if m := mountOf(c.Container, p.token.volume); m != nil {
		return m.MountPath, true, nil
	}
	taken := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return path.Clean(m.MountPath) == path.Clean(p.token.mountPath)
	})
	if taken < 0 {
		return p.token.mountPath, false, nil
	}
	if variable(c.Container, azure.EnvFederatedTokenFile) >= 0 {
		return p.token.mountPath, true, nil
	}
	return "", false, refuse(c.field("volumeMounts"), "volume %q is mounted at %s, where the federated token goes; mount it elsewhere, or name the container in %s",
		shorten(c.VolumeMounts[taken].Name), shorten(p.token.mountPath), SkipContainersAnnotation)
}

// dangling reports whether a webhook wrote this path for a mount that another
// webhook has moved since: newer azure-workload-identity mounts in place of our path
// one of its own, and keeps the variable that points into ours. The moved mount is what
// tells such a path from one that the pod's author wrote, which stays.
func dangling(c *corev1.Container, env corev1.EnvVar, mountPath string) bool {
	file := map[string]string{azure.EnvFederatedTokenFile: tokenPath, azure.EnvCAFile: caPath}[env.Name]
	if file == "" || !below(env.Value, secretsRoot) || !strings.HasSuffix(env.Value, "/"+file) {
		return false
	}
	moved := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return reserved(m.Name) })
	return moved && !below(env.Value, mountPath) && !mountedIn(c, env.Value)
}

// mountedIn reports whether a file is in a volume of the container, or is one.
func mountedIn(c *corev1.Container, file string) bool {
	return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return below(file, m.MountPath) || path.Clean(file) == path.Clean(m.MountPath)
	})
}

func below(file, dir string) bool {
	return strings.HasPrefix(file, strings.TrimSuffix(path.Clean(dir), "/")+"/")
}
