package inject

import (
	"encoding/json"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// recordEnv is the variable of an injected container that records which variables and resources
// of it a pass of [Pod] wrote, where the annotations or the configuration determine their names.
// A later pass so distinguishes them from additions of others, which it keeps.
const recordEnv = "IMDS_OIDC_PROXY_INJECTED"

// defaultRecord is the record of a container with the default resources and without further
// variables. It is not written.
const defaultRecord = "limits.memory,requests.cpu,requests.memory"

// record returns the value of recordEnv. "": the default.
func record(extra []corev1.EnvVar, r corev1.ResourceRequirements) string {
	names := []string{}
	for _, e := range extra {
		if !slices.Contains(writtenSettings, e.Name) {
			names = append(names, "env."+e.Name)
		}
	}
	for name := range r.Limits {
		names = append(names, "limits."+string(name))
	}
	for name := range r.Requests {
		names = append(names, "requests."+string(name))
	}
	slices.Sort(names)
	switch text := strings.Join(names, ","); text {
	case defaultRecord:
		return ""
	case "":
		return "none"
	default:
		return text
	}
}

// recorded returns the names in the record of a container, as a set. Only containers of [Pod]
// have one.
func recorded(c corev1.Container) map[string]bool {
	text := defaultRecord
	if !isInjected(c) {
		text = ""
	} else if i := variable(&c, recordEnv); i >= 0 {
		text = c.Env[i].Value
	}
	set := map[string]bool{}
	for name := range strings.SplitSeq(text, ",") {
		set[name] = true
	}
	return set
}

// keptSettings are the variables of the proxy and the init container that [Pod] does not write,
// and that others may add: none of them changes whose tokens are served, or to whom.
var keptSettings = []string{"PROXY_CA_FILE", "PROXY_LOG_ALL_REQUESTS", "PROXY_LOG_FORMAT", requireBlockedEnv, "PROXY_STRICT_API_VERSION", "PROXY_TERMINATION_LOG"}

// writtenSettings are the variables that [Pod] writes into injected containers, depending on
// annotations and configuration. They are replaced without a warning.
var writtenSettings = append([]string{
	"PROXY_PORT", "PROXY_IDENTITY", "PROXY_PREFETCH", "PROXY_ALLOWED_CLIENT_IDS", "PROXY_LOG_LEVEL", "GOMEMLIMIT",
	"PROXY_ADMIN_ADDRESS", "PROXY_IMDS_PASSTHROUGH", "PROXY_SHUTDOWN_DELAY", appServiceHeaderEnv,
	requireRedirectEnv, nodeNameEnv, regionEnv, instanceEnv, instanceFieldsEnv,
	"PROXY_UID", "PROXY_GID", "PROXY_SEAL", "PROXY_DENY", recordEnv,
}, injectedEnv...)

// carry returns the wanted container with what others have added to the existing one that it
// replaces: everything that [fits] tolerates, such as the variables of an HTTP proxy, mounts, and
// fields that the wanted container does not set. It also returns the names of additions that
// cannot be kept.
func carry(want, have corev1.Container) (corev1.Container, []string) {
	ours := recorded(have)
	c := *have.DeepCopy()
	c.Name, c.Command, c.Args, c.EnvFrom, c.Ports, c.ReadinessProbe = want.Name, want.Command, want.Args, nil, want.Ports, nil
	// The image of azure-workload-identity is another program, also if its name is the same.
	if !isInjected(have) || !sameImage(want.Image, have.Image) {
		c.Image = want.Image
		if c.ImagePullPolicy == defaultPullPolicy(have.Image) {
			c.ImagePullPolicy = "" // the default for the new image
		}
	}
	if c.RestartPolicy = want.RestartPolicy; c.RestartPolicy == nil {
		c.RestartPolicyRules = nil // the API server refuses rules without a policy
	}
	c.StartupProbe = carryProbe(want.StartupProbe, have.StartupProbe)
	c.LivenessProbe = carryProbe(want.LivenessProbe, have.LivenessProbe)
	if c.Lifecycle = overlay(want.Lifecycle, have.Lifecycle); c.Lifecycle != nil {
		c.Lifecycle.PostStart = want.Lifecycle.PostStart // a hook may have only one handler, as a probe
	}
	c.SecurityContext = carrySecurity(want.SecurityContext, c.SecurityContext)
	var lost, more []string
	c.Env, lost = carryEnv(want, have, ours)
	c.VolumeMounts, more = carryMounts(want, have)
	lost = append(lost, more...)
	c.Resources, more = carryResources(want.Resources, have.Resources, ours)
	lost = append(lost, more...)
	return c, append(lost, lostFields(have, c)...)
}

// overlay returns want with the fields of have that want does not set, at any depth. Nil: want is.
func overlay[T any](want, have *T) *T {
	if want == nil || have == nil {
		return want
	}
	var merged T
	text, _ := json.Marshal(over(asJSON(want), asJSON(have))) // cannot fail, as in asJSON
	_ = json.Unmarshal(text, &merged)
	return &merged
}

func over(want, have any) any {
	wanted, isMap := want.(map[string]any)
	merged, ok := have.(map[string]any)
	if !isMap || !ok {
		return want
	}
	for key, value := range wanted {
		merged[key] = over(value, merged[key])
	}
	return merged
}

// carryProbe keeps settings of a probe such as initialDelaySeconds, but no other handler: a probe
// may have only one.
func carryProbe(want, have *corev1.Probe) *corev1.Probe {
	merged := overlay(want, have)
	if merged == nil {
		return nil
	}
	if want.Exec == nil {
		merged.Exec = nil
	}
	if want.HTTPGet == nil {
		merged.HTTPGet = nil
	}
	merged.TCPSocket, merged.GRPC = want.TCPSocket, want.GRPC
	return merged
}

func carrySecurity(want, have *corev1.SecurityContext) *corev1.SecurityContext {
	merged := overlay(want, have)
	merged.Capabilities, merged.SeccompProfile = want.Capabilities, want.SeccompProfile
	return merged
}

func carryEnv(want, have corev1.Container, ours map[string]bool) (env []corev1.EnvVar, lost []string) {
	env = slices.Clone(want.Env)
	wanted := values(want.Env)
	for _, e := range have.Env {
		value, isWanted := wanted[e.Name]
		switch {
		case e.Name == "PROXY_DENY" && e.Value != wireServer: // no pass wrote this value
			lost = append(lost, "env "+e.Name)
		case slices.Contains(writtenSettings, e.Name) || ours["env."+e.Name]:
		case isWanted && value == valueText(e):
		case isWanted || isSetting(want.Name, e.Name):
			lost = append(lost, "env "+e.Name)
		default:
			env = append(env, e)
		}
	}
	return env, lost
}

// carryMounts keeps the mounts of others. A mount of a token or of certificate authorities by an
// earlier pass is not kept.
func carryMounts(want, have corev1.Container) (mounts []corev1.VolumeMount, lost []string) {
	mounts = slices.Clone(want.VolumeMounts)
	taken := map[string]bool{}
	for _, m := range mounts {
		taken[path.Clean(m.MountPath)] = true
	}
	for _, m := range have.VolumeMounts {
		switch {
		case reserved(m.Name) || isConfigMapName(m.Name):
		case slices.ContainsFunc(want.VolumeMounts, func(w corev1.VolumeMount) bool { return w.Name == m.Name && w.MountPath == m.MountPath }):
		case taken[path.Clean(m.MountPath)]:
			lost = append(lost, "volumeMount "+shorten(m.Name))
		default:
			mounts = append(mounts, m)
		}
	}
	return mounts, lost
}

// carryResources keeps requests and limits that no pass wrote, such as those of a LimitRange. It
// does not keep a request above the limit, which the API server would refuse.
func carryResources(want, have corev1.ResourceRequirements, ours map[string]bool) (r corev1.ResourceRequirements, lost []string) {
	r = *want.DeepCopy()
	r.Claims = have.Claims
	keep := func(kind string, to *corev1.ResourceList, from corev1.ResourceList, allowed func(corev1.ResourceName) bool) {
		for _, name := range slices.Sorted(maps.Keys(from)) {
			_, set := (*to)[name]
			switch id := kind + "." + string(name); {
			case set || ours[id]:
			case !allowed(name):
				lost = append(lost, "resources."+id)
			default:
				if *to == nil {
					*to = corev1.ResourceList{}
				}
				(*to)[name] = from[name]
			}
		}
	}
	keep("limits", &r.Limits, have.Limits, func(name corev1.ResourceName) bool {
		request, ok := r.Requests[name]
		limit := have.Limits[name]
		return !ok || request.Cmp(limit) <= 0
	})
	requests := maps.Clone(have.Requests)
	maps.DeleteFunc(requests, func(name corev1.ResourceName, request resource.Quantity) bool {
		limit, ok := have.Limits[name]
		return ok && request.Cmp(limit) == 0 // the API server's default where there is a limit
	})
	keep("requests", &r.Requests, requests, func(name corev1.ResourceName) bool {
		limit, ok := r.Limits[name]
		request := requests[name]
		return !ok || request.Cmp(limit) <= 0
	})
	return r, lost
}

// lostFields returns the names of fields that others have set in an existing container, and that
// are not in the one that replaces it.
func lostFields(have, now corev1.Container) []string {
	others, _ := asJSON(withoutOurs(have)).(map[string]any)
	kept, _ := asJSON(now).(map[string]any)
	var lost []string
	for _, field := range slices.Sorted(maps.Keys(others)) {
		// Comparing subsets takes the product of the lengths of two lists. Lists that are kept
		// are equal.
		if !reflect.DeepEqual(others[field], kept[field]) && !isSubset(others[field], kept[field]) {
			lost = append(lost, field)
		}
	}
	return lost
}

// withoutOurs returns a container without the fields that an earlier pass may have written, in
// any configuration, and without those that carry compares element by element. A container that
// is not from an earlier pass is azure-workload-identity's.
func withoutOurs(c corev1.Container) corev1.Container {
	if !isInjected(c) { // what azure-workload-identity's webhook never writes
		return corev1.Container{Name: c.Name, EnvFrom: c.EnvFrom, LivenessProbe: c.LivenessProbe, ReadinessProbe: c.ReadinessProbe}
	}
	c.Image, c.ImagePullPolicy, c.RestartPolicy = "", "", nil
	c.Env, c.VolumeMounts, c.Resources = nil, nil, corev1.ResourceRequirements{}
	c.Ports = slices.DeleteFunc(slices.Clone(c.Ports), func(p corev1.ContainerPort) bool { return p.Name == adminPortName })
	if probe := c.StartupProbe; probe != nil && isProbe(probe.Exec) {
		c.StartupProbe = nil
	}
	if probe := c.LivenessProbe; probe != nil && probe.HTTPGet != nil && probe.HTTPGet.Port.StrVal == adminPortName {
		c.LivenessProbe = nil
	}
	if l := c.Lifecycle; l != nil && l.PostStart != nil && isProbe(l.PostStart.Exec) {
		c.Lifecycle = &corev1.Lifecycle{PreStop: l.PreStop, StopSignal: l.StopSignal}
		if *c.Lifecycle == (corev1.Lifecycle{}) {
			c.Lifecycle = nil
		}
	}
	return c
}

// isProbe reports whether a command is the proxy's own probe.
func isProbe(exec *corev1.ExecAction) bool {
	return exec != nil && len(exec.Command) > 1 && exec.Command[0] == probeCommand[0] && exec.Command[1] == probeCommand[1]
}

// defaultPullPolicy returns the pull policy that the API server gives to an image.
func defaultPullPolicy(image string) corev1.PullPolicy {
	name, _, digest := strings.Cut(path.Base(image), "@")
	if _, tag, tagged := strings.Cut(name, ":"); !digest && (!tagged || tag == "latest") {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}
