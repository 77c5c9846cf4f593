package inject

import (
	"context"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
)

// identityEnv returns the variables of workload identity for a container that mounts the token at
// mountPath. The token's file is the first: [Remove] removes the variables after it.
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

// environments adds the variables and the token to the application containers.
func (p *plan) environments(ctx context.Context) error {
	for _, c := range allContainers(p.pod) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !p.takesToken(c) {
			continue
		}
		if err := p.environment(c); err != nil {
			return err
		}
	}
	return nil
}

// takesToken reports whether a container gets the variables and the token. The injected init
// container needs no token, and the injected proxy has them from the start.
func (p *plan) takesToken(c containerRef) bool {
	return c.Name != ProxyInitName &&
		!(c.Name == ProxyName && p.settings.inject) &&
		!p.settings.skip[c.Name]
}

func (p *plan) environment(c containerRef) error {
	mountPath, mounted, err := p.mountPath(c)
	if err != nil {
		return err
	}
	want := p.identityEnv(mountPath)
	if s := p.settings; s.inject && s.redirect == redirectNone {
		want = append(want, corev1.EnvVar{Name: azure.EnvIMDSHost, Value: imdsHost(decimal(s.port))})
	}
	want = append(want, p.appServiceEnv(c)...)
	written := p.writtenIn(c)
	var missing []corev1.EnvVar
	for _, env := range want {
		i := variable(c.Container, env.Name)
		switch {
		case i < 0:
			missing = append(missing, env)
		case dangling(c.Container, c.Env[i], mountPath), written(i) && valueText(c.Env[i]) != valueText(env):
			p.replace(at(c.path()+"/env", i)+"/value", env.Value)
		}
	}
	for i, env := range slices.Backward(c.Env) {
		if written(i) && !slices.ContainsFunc(want, func(e corev1.EnvVar) bool { return e.Name == env.Name }) {
			p.remove(at(c.path()+"/env", i))
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

// variable returns the index of a container's variable, or -1.
func variable(c *corev1.Container, name string) int {
	return slices.IndexFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == name })
}

// needsMount reports whether a container needs a mount of the injected token. If its author has
// set the path of a token elsewhere, it needs none. In a later run, the missing mount shows that
// the path is the author's.
func needsMount(c *corev1.Container, added []corev1.EnvVar, mountPath string) bool {
	i := variable(c, azure.EnvFederatedTokenFile)
	return i < 0 || !isPath(c.Env[i]) || inDir(c.Env[i].Value, mountPath) ||
		slices.ContainsFunc(added, func(e corev1.EnvVar) bool { return inDir(e.Value, mountPath) })
}

// isPath reports whether a variable's value is a literal absolute path, without references to
// other variables.
func isPath(e corev1.EnvVar) bool {
	return e.ValueFrom == nil && strings.HasPrefix(e.Value, "/") && !strings.Contains(e.Value, "$(")
}

func (p *plan) mount(mountPath string) corev1.VolumeMount {
	return corev1.VolumeMount{Name: p.token.volume, MountPath: mountPath, ReadOnly: true}
}

// mountPath returns the path at which a container mounts the token or will mount it. A path can
// have one mount only: if another volume is mounted there, the container must have its own token,
// or the pod is refused.
func (p *plan) mountPath(c containerRef) (mountPath string, mounted bool, err error) {
	if m := mountOf(c.Container, p.token.volume); m != nil {
		return m.MountPath, true, nil
	}
	wanted := path.Clean(p.token.mountPath)
	taken := slices.IndexFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return path.Clean(m.MountPath) == wanted })
	if taken < 0 {
		return p.token.mountPath, false, nil
	}
	if variable(c.Container, azure.EnvFederatedTokenFile) >= 0 {
		return p.token.mountPath, true, nil
	}
	return "", false, refuse(c.field("volumeMounts"), "volume %q is mounted at %s, the path of the federated token; mount it at another path, or add the container to annotation %s",
		shorten(c.VolumeMounts[taken].Name), shorten(p.token.mountPath), SkipContainersAnnotation)
}

// dangling reports whether a webhook set this path for a mount that another webhook has moved:
// newer versions of azure-workload-identity replace our mount by one at another path, and do not
// change the variable. The moved mount distinguishes such a path from one that the pod's author
// set, which must not change.
func dangling(c *corev1.Container, env corev1.EnvVar, mountPath string) bool {
	file := map[string]string{azure.EnvFederatedTokenFile: tokenPath, azure.EnvCAFile: caPath}[env.Name]
	if file == "" || !inDir(env.Value, secretsRoot) || !strings.HasSuffix(env.Value, "/"+file) {
		return false
	}
	moved := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return reserved(m.Name) })
	return moved && !inDir(env.Value, mountPath) && !mountedIn(c, env.Value)
}

// mountedIn reports whether a file is in a volume of the container, or is mounted itself.
func mountedIn(c *corev1.Container, file string) bool {
	clean := path.Clean(file)
	return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return inDir(file, m.MountPath) || clean == path.Clean(m.MountPath)
	})
}

func inDir(file, dir string) bool {
	return strings.HasPrefix(file, strings.TrimSuffix(path.Clean(dir), "/")+"/")
}

// dirs is a set of directories as a tree of their names. With it, many files are compared with
// many directories in linear time.
type dirs struct {
	member bool
	within map[string]*dirs
}

func (d *dirs) add(dir string) {
	for name := range strings.SplitSeq(strings.TrimSuffix(path.Clean(dir), "/"), "/") {
		if d.within[name] == nil {
			if d.within == nil {
				d.within = map[string]*dirs{}
			}
			d.within[name] = new(dirs)
		}
		d = d.within[name]
	}
	d.member = true
}

// contain reports whether [inDir] is true for the file and one of the directories.
func (d *dirs) contain(file string) bool {
	for name := range strings.SplitSeq(file, "/") {
		if d.member {
			return true
		}
		if d = d.within[name]; d == nil {
			return false
		}
	}
	return false
}
