package inject_test

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
)

// defaulted returns the pod with the API server's defaults and the changes of the admission
// plugins that run before webhooks. It reimplements them, because the API server's own code
// needs all of Kubernetes. test/cluster tests with a real API server.
func defaulted(pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	spec := &pod.Spec
	or(&spec.RestartPolicy, corev1.RestartPolicyAlways)
	or(&spec.DNSPolicy, corev1.DNSClusterFirst)
	or(&spec.SchedulerName, corev1.DefaultSchedulerName)
	or(&spec.ServiceAccountName, "default")
	spec.DeprecatedServiceAccount = spec.ServiceAccountName
	orNil(&spec.TerminationGracePeriodSeconds, 30)
	orNil(&spec.EnableServiceLinks, true)
	orNil(&spec.Priority, 0)
	orNil(&spec.PreemptionPolicy, corev1.PreemptLowerPriority)
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	const apiAccess = "kube-api-access-2fz8q"
	found := false
	for i := range spec.Volumes {
		defaultVolume(&spec.Volumes[i])
		found = found || spec.Volumes[i].Name == apiAccess
	}
	if !found {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: apiAccess, VolumeSource: corev1.VolumeSource{
			Projected: &corev1.ProjectedVolumeSource{DefaultMode: new(int32(420)), Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: new(int64(3607))}}}},
		}})
	}
	for _, c := range all(pod) {
		defaultContainer(c, apiAccess)
	}
	defaultPodRequests(pod)
	return pod
}

// defaultPodRequests adds the requests of spec.resources, as defaultPodRequests in
// pkg/apis/core/v1 of Kubernetes does.
func defaultPodRequests(pod *corev1.Pod) {
	level := pod.Spec.Resources
	if level == nil || len(level.Limits) == 0 {
		return
	}
	requests := corev1.ResourceList{}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limit, limited := level.Limits[name]
		if sum := aggregate(pod, name); !sum.IsZero() {
			requests[name] = sum
		} else if limited {
			requests[name] = limit
		}
	}
	maps.Copy(requests, level.Requests)
	level.Requests = requests
}

func or[T comparable](field *T, fallback T) {
	var zero T
	if *field == zero {
		*field = fallback
	}
}

func orNil[T any](field **T, fallback T) {
	if *field == nil {
		*field = &fallback
	}
}

func defaultVolume(v *corev1.Volume) {
	if v.Projected == nil {
		return
	}
	orNil(&v.Projected.DefaultMode, 420)
	for _, s := range v.Projected.Sources {
		if s.ServiceAccountToken != nil {
			orNil(&s.ServiceAccountToken.ExpirationSeconds, 3600)
		}
	}
}

func defaultContainer(c *corev1.Container, apiAccess string) {
	or(&c.ImagePullPolicy, corev1.PullIfNotPresent)
	or(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	or(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		or(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for _, p := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		defaultProbe(p)
	}
	if len(c.Resources.Limits) > 0 {
		requests := maps.Clone(c.Resources.Limits)
		maps.Copy(requests, c.Resources.Requests)
		c.Resources.Requests = requests
	}
	for _, e := range c.Env {
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			or(&e.ValueFrom.FieldRef.APIVersion, "v1")
		}
	}
	for _, m := range c.VolumeMounts {
		if m.Name == apiAccess {
			return
		}
	}
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: apiAccess, ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"})
}

func defaultProbe(p *corev1.Probe) {
	if p == nil {
		return
	}
	or(&p.TimeoutSeconds, 1)
	or(&p.PeriodSeconds, 10)
	or(&p.SuccessThreshold, 1)
	or(&p.FailureThreshold, 3)
	if p.HTTPGet != nil {
		or(&p.HTTPGet.Scheme, corev1.URISchemeHTTP)
		or(&p.HTTPGet.Path, "/")
	}
}
