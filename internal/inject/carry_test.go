package inject_test

import (
	"encoding/json"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/azwi"
)

// additions has an addition of others to an injected container for every field of a container.
// lost is how the warning names it if it cannot be kept. A field without an addition has the
// reason in fixed.
var additions = map[string][]struct {
	add  func(*corev1.Container)
	lost string
}{
	"Command":    {{func(c *corev1.Container) { c.Command = []string{"/bin/sh"} }, "command"}},
	"Args":       {{func(c *corev1.Container) { c.Args = []string{"--log-level=debug"} }, "args"}},
	"WorkingDir": {{func(c *corev1.Container) { c.WorkingDir = "/tmp" }, ""}},
	"Ports":      {{func(c *corev1.Container) { c.Ports = []corev1.ContainerPort{{ContainerPort: 9}} }, "ports"}},
	"EnvFrom":    {{func(c *corev1.Container) { c.EnvFrom = []corev1.EnvFromSource{{Prefix: "P"}} }, "envFrom"}},
	"ResizePolicy": {{func(c *corev1.Container) {
		c.ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: "cpu", RestartPolicy: "NotRequired"}}
	}, ""}},
	"RestartPolicyRules": {{func(c *corev1.Container) { c.RestartPolicyRules = []corev1.ContainerRestartRule{{Action: "Restart"}} }, "restartPolicyRules"}},
	"VolumeMounts": {
		{mounts("corporate-ca", "/ca"), ""},
		{mounts("azure-workload-identity-reserved-0", "/other"), "-"}, // of an earlier pass
	},
	"VolumeDevices": {{func(c *corev1.Container) { c.VolumeDevices = []corev1.VolumeDevice{{Name: "d", DevicePath: "/d"}} }, ""}},
	"Env": {
		{variableOf("HTTPS_PROXY", "http://proxy.example.test:3128"), ""},
		{variableOf("PROXY_CA_FILE", "/ca/ca.crt"), ""},
		{variableOf("PROXY_LOG_FORMAT", "console"), ""},
		{variableOf("PROXY_FORCE", "true"), "env PROXY_FORCE"},
		{variableOf("PROXY_DENY", "192.0.2.1:80"), "env PROXY_DENY"},
		{variableOf("METADATA_IP", "192.0.2.1"), "env METADATA_IP"},
		{variableOf("PROXY_IMDS_ADDRESS", "http://192.0.2.1"), "env PROXY_IMDS_ADDRESS"},
		{func(c *corev1.Container) {
			c.Env = append(c.Env, corev1.EnvVar{Name: "SECRET", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{Key: "k"}}})
		}, ""},
	},
	"Resources": {
		{func(c *corev1.Container) { c.Resources.Limits["cpu"] = resource.MustParse("100m") }, ""},
		{func(c *corev1.Container) { c.Resources.Requests["ephemeral-storage"] = resource.MustParse("1Mi") }, ""},
		{func(c *corev1.Container) { c.Resources.Claims = []corev1.ResourceClaim{{Name: "x"}} }, ""},
		{func(c *corev1.Container) { c.Resources.Limits["cpu"] = resource.MustParse("1m") }, "resources.limits.cpu"},
	},
	"LivenessProbe":  {{func(c *corev1.Container) { c.LivenessProbe = tcp() }, "livenessProbe"}},
	"ReadinessProbe": {{func(c *corev1.Container) { c.ReadinessProbe = tcp() }, "readinessProbe"}},
	"Lifecycle": {{func(c *corev1.Container) {
		if c.Lifecycle == nil {
			c.Lifecycle = new(corev1.Lifecycle)
		}
		c.Lifecycle.PreStop = &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 5}}
	}, "lifecycle"}},
	"TerminationMessagePath":   {{func(c *corev1.Container) { c.TerminationMessagePath = "/dev/end" }, ""}},
	"TerminationMessagePolicy": {{func(c *corev1.Container) { c.TerminationMessagePolicy = "FallbackToLogsOnError" }, ""}},
	"ImagePullPolicy":          {{func(c *corev1.Container) { c.ImagePullPolicy = corev1.PullAlways }, ""}},
	"SecurityContext": {
		{func(c *corev1.Container) { c.SecurityContext.SELinuxOptions = &corev1.SELinuxOptions{Type: "spc_t"} }, ""},
		{func(c *corev1.Container) {
			c.SecurityContext.AppArmorProfile = &corev1.AppArmorProfile{Type: "RuntimeDefault"}
		}, ""},
		{func(c *corev1.Container) {
			c.SecurityContext.Capabilities.Add = append(c.SecurityContext.Capabilities.Add, "SYS_ADMIN")
		}, "securityContext"},
		{func(c *corev1.Container) { c.SecurityContext.Privileged = new(true) }, "securityContext"},
		{func(c *corev1.Container) { c.SecurityContext.SeccompProfile.Type = "Unconfined" }, "securityContext"},
	},
	"Stdin":     {{func(c *corev1.Container) { c.Stdin = true }, ""}},
	"StdinOnce": {{func(c *corev1.Container) { c.StdinOnce = true }, ""}},
	"TTY":       {{func(c *corev1.Container) { c.TTY = true }, ""}},
}

// fixed are the fields of a container to which nothing can be added, and why.
var fixed = map[string]string{
	"Name":          "identifies the container",
	"Image":         "TestMirroredSurvives",
	"RestartPolicy": "has one value, which injection sets",
	"StartupProbe":  "TestProbeSettings",
}

func tcp() *corev1.Probe {
	return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(9)}}}
}

func variableOf(name, value string) func(*corev1.Container) {
	return func(c *corev1.Container) { c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value}) }
}

func mounts(volume, mountPath string) func(*corev1.Container) {
	return func(c *corev1.Container) {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: mountPath})
	}
}

// replacements are changes after which an injected container is replaced.
var replacements = map[string]func(*corev1.Pod, *corev1.ServiceAccount, *inject.Config){
	"images": func(_ *corev1.Pod, _ *corev1.ServiceAccount, c *inject.Config) {
		c.ProxyImage, c.ProxyInitImage = c.ProxyImage+".1", c.ProxyInitImage+".1"
	},
	"another init container in front": func(p *corev1.Pod, _ *corev1.ServiceAccount, _ *inject.Config) {
		p.Spec.InitContainers = slices.Insert(p.Spec.InitContainers, 0, corev1.Container{Name: "mesh", Image: "mesh:1"})
	},
	"another account": func(p *corev1.Pod, a *corev1.ServiceAccount, _ *inject.Config) {
		a.Annotations[inject.ClientIDAnnotation] = otherID
		annotate(inject.LogLevelAnnotation, "debug")(p) // replaces the init container too
	},
	"a setting": func(p *corev1.Pod, _ *corev1.ServiceAccount, _ *inject.Config) {
		annotate(inject.ProxyPortAnnotation, "9000")(p)
	},
}

// TestAdditions checks for each field of both injected containers that an addition of others is
// tolerated, and then survives each replacement; or that it is not, and that a warning names it.
func TestAdditions(t *testing.T) {
	for i := range reflect.TypeFor[corev1.Container]().NumField() {
		field := reflect.TypeFor[corev1.Container]().Field(i).Name
		if (len(additions[field]) == 0) == (fixed[field] == "") {
			t.Errorf("field %s needs additions, or the reason why there are none", field)
		}
		for n, addition := range additions[field] {
			for _, name := range []string{inject.ProxyName, inject.ProxyInitName} {
				pod := defaulted(mutate(t, injected(initNamed("migrate")), account(), config()))
				addition.add(find(pod.Spec.InitContainers, name))
				want := find(pod.DeepCopy().Spec.InitContainers, name)
				result, err := inject.Pod(pod, account(), config())
				may := addition.lost == "" || addition.lost == "-" || field == "RestartPolicyRules" || strings.HasPrefix(addition.lost, "resources.") || sidecarOnly(want, addition.lost)
				if tolerated := len(result.Patch) == 0; err != nil || tolerated != may {
					t.Errorf("%s %d of %s: tolerated: %t, %v, %v", field, n, name, tolerated, result, err)
				}
				for change, do := range replacements {
					testAddition(t, field+" of "+name+", "+change, pod.DeepCopy(), want, addition.lost, do)
				}
			}
		}
	}
}

func testAddition(t *testing.T, what string, pod *corev1.Pod, have *corev1.Container, lost string, change func(*corev1.Pod, *corev1.ServiceAccount, *inject.Config)) {
	t.Helper()
	a, c := account(), config()
	change(pod, a, &c)
	result, err := inject.Pod(pod, a, c)
	if err != nil || len(result.Patch) == 0 {
		t.Fatalf("%s: %v, %v, want a replacement", what, result, err)
	}
	warning := "container " + have.Name + " is replaced and loses "
	warned := slices.ContainsFunc(result.Warnings, func(w string) bool { return strings.HasPrefix(w, warning) && strings.Contains(w, lost) })
	once := mutate(t, pod, a, c)
	got := find(once.Spec.InitContainers, have.Name)
	isLost := lost != "" && !sidecarOnly(have, lost)
	if warned != (isLost && lost != "-") {
		t.Errorf("%s: warnings %q, want %q: %t", what, result.Warnings, warning+lost, isLost)
	}
	if kept := survives(t, have, got); kept == isLost {
		t.Errorf("%s: kept: %t, got\n%v, before\n%v", what, kept, got, have)
	}
	if again, err := inject.Pod(defaulted(once), a, c); err != nil || len(again.Patch) > 0 {
		t.Errorf("%s: second pass: %v, %v", what, again.Patch, err)
	}
}

// sidecarOnly reports whether an addition is kept in this container, because it is a native sidecar:
// other init containers cannot have rules for restarts and hooks.
func sidecarOnly(c *corev1.Container, lost string) bool {
	return c.RestartPolicy != nil && (lost == "restartPolicyRules" || lost == "lifecycle")
}

// survives reports whether all of a container is in the one that replaced it, except what the
// replacements change.
func survives(t *testing.T, before, after *corev1.Container) bool {
	t.Helper()
	trees := [2]map[string]any{}
	for i, c := range []*corev1.Container{before, after} {
		c = c.DeepCopy()
		c.Image = ""
		c.Env = slices.DeleteFunc(c.Env, func(e corev1.EnvVar) bool {
			return slices.Contains([]string{"AZURE_CLIENT_ID", "PROXY_PORT", "PROXY_LOG_LEVEL"}, e.Name)
		})
		if c.ImagePullPolicy == corev1.PullIfNotPresent {
			c.ImagePullPolicy = "" // the default
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &trees[i]); err != nil {
			t.Fatal(err)
		}
	}
	return contains(trees[1], trees[0])
}

// contains reports whether have has all of want, in lists regardless of the order.
func contains(have, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		have, ok := have.(map[string]any)
		for key, value := range want {
			ok = ok && contains(have[key], value)
		}
		return ok
	case []any:
		have, _ := have.([]any)
		for _, w := range want {
			if !slices.ContainsFunc(have, func(h any) bool { return contains(h, w) }) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(have, want)
}

// TestMirroredSurvives checks that an image from a mirror, or with a digest, stays when the
// container is replaced for another reason, and that another tag replaces it.
func TestMirroredSurvives(t *testing.T) {
	const mirror = "mirror.example.test/cache/imds-oidc-proxy:v1.0.0"
	pod := mutate(t, injected(), account(), config())
	pod.Spec.InitContainers[1].Image = mirror
	annotate(inject.ProxyPortAnnotation, "9000")(pod)
	pod = mutate(t, pod, account(), config())
	if got := pod.Spec.InitContainers[1]; got.Image != mirror || value(&got, "PROXY_PORT") != "9000" {
		t.Errorf("got %s and port %s, want the mirror and 9000", got.Image, value(&got, "PROXY_PORT"))
	}
	c := config()
	c.ProxyImage = "registry.example.test/imds-oidc-proxy:v2"
	if got := mutate(t, pod, account(), c).Spec.InitContainers[1].Image; got != c.ProxyImage {
		t.Errorf("got %s, want %s", got, c.ProxyImage)
	}
}

// TestPullPolicy checks that the default pull policy of the earlier image does not stay with
// another one.
func TestPullPolicy(t *testing.T) {
	for _, c := range []struct {
		image    string
		had, got corev1.PullPolicy
	}{
		{"p:v1", corev1.PullIfNotPresent, ""},
		{"p:v1", corev1.PullAlways, corev1.PullAlways},
		{"p", corev1.PullAlways, ""},
		{"r.example.test:5000/p:latest", corev1.PullAlways, ""},
		{"r.example.test:5000/p:latest", corev1.PullNever, corev1.PullNever},
		{"p@sha256:0a", corev1.PullIfNotPresent, ""},
	} {
		before := config()
		before.ProxyImage = c.image
		pod := mutate(t, injected(), account(), before)
		pod.Spec.InitContainers[1].ImagePullPolicy = c.had
		if got := mutate(t, pod, account(), config()).Spec.InitContainers[1].ImagePullPolicy; got != c.got {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// TestProbeSettings checks that settings of the injected liveness probe survive, that preStop does,
// also if the proxy becomes a native sidecar, and that no probe or hook gets a second handler.
func TestProbeSettings(t *testing.T) {
	pod := mutate(t, injected(annotate(inject.AdminPortAnnotation, "8001")), account(), config())
	proxy := &pod.Spec.InitContainers[1]
	proxy.LivenessProbe.ProbeHandler = tcp().ProbeHandler
	proxy.LivenessProbe.TerminationGracePeriodSeconds = new(int64(4))
	pod = mutate(t, pod, account(), config())
	if p := pod.Spec.InitContainers[1].LivenessProbe; p.HTTPGet == nil || p.TCPSocket != nil || *p.TerminationGracePeriodSeconds != 4 {
		t.Errorf("liveness probe %v, want injection's handler and the grace period kept", p)
	}
	old := config()
	old.PostStart = true
	pod = mutate(t, injected(), account(), old)
	hook := pod.Spec.Containers[0].Lifecycle
	hook.PreStop, hook.PostStart = &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 5}}, &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/"}}
	pod = mutate(t, pod, account(), old)
	native := mutate(t, pod, account(), config())
	for what, c := range map[string]corev1.Container{"old style": pod.Spec.Containers[0], "native": native.Spec.InitContainers[1]} {
		if hook := c.Lifecycle; hook.PreStop == nil || hook.PostStart.HTTPGet != nil || hook.PostStart.Exec == nil {
			t.Errorf("%s: lifecycle %v, want preStop kept, and injection's postStart", what, hook)
		}
	}
}

// TestEarlierStartupProbe checks that the startup probe that injection gave to native sidecars
// before the hook is replaced without a warning, and that the author's own one is not kept, with a
// warning.
func TestEarlierStartupProbe(t *testing.T) {
	fresh := mutate(t, injected(), account(), config())
	ours := corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/proxy", "--probe", "--probe-timeout=20s"}}}
	for what, c := range map[string]struct {
		handler corev1.ProbeHandler
		warned  bool
	}{"of injection": {ours, false}, "of the author": {tcp().ProbeHandler, true}} {
		pod := fresh.DeepCopy()
		proxy := &pod.Spec.InitContainers[1]
		proxy.Lifecycle, proxy.StartupProbe = nil, &corev1.Probe{ProbeHandler: c.handler, TimeoutSeconds: 25, PeriodSeconds: 1, FailureThreshold: 6}
		result, err := inject.Pod(pod, account(), config())
		if err != nil || (len(result.Warnings) > 0) != c.warned || c.warned && !strings.Contains(result.Warnings[0], "azwi-proxy is replaced and loses startupProbe,") {
			t.Errorf("%s: %v, warnings %q, want some: %t", what, err, result.Warnings, c.warned)
		}
		if got := mutate(t, pod, account(), config()); string(encode(t, got)) != string(encode(t, fresh)) {
			t.Errorf("%s: %v, want the container of a new pod", what, got.Spec.InitContainers[1])
		}
	}
}

// TestAdditionsToAzwi checks that additions to the proxy of azure-workload-identity's webhook
// survive its replacement by ours, without what its webhook wrote.
func TestAdditionsToAzwi(t *testing.T) {
	pod, err := azwi.Webhook{NativeSidecar: true, TenantID: tenantID}.Mutate(injected(), account())
	if err != nil {
		t.Fatal(err)
	}
	fresh := mutate(t, pod.DeepCopy(), account(), config())
	for _, c := range all(pod) {
		variableOf("HTTPS_PROXY", "http://proxy.example.test:3128")(c)
		mounts("corporate-ca", "/ca")(c)
	}
	got := mutate(t, pod, account(), config())
	for _, name := range []string{inject.ProxyName, inject.ProxyInitName} {
		want := find(fresh.Spec.InitContainers, name)
		variableOf("HTTPS_PROXY", "http://proxy.example.test:3128")(want)
		mounts("corporate-ca", "/ca")(want)
		if c := find(got.Spec.InitContainers, name); c.String() != want.String() {
			t.Errorf("%s is\n%v, want\n%v", name, c, want)
		}
	}
}

// TestImageOfAzwi checks that the image of azure-workload-identity is replaced although the
// configured one has the same name and tag in another registry.
func TestImageOfAzwi(t *testing.T) {
	pod, err := azwi.Webhook{NativeSidecar: true, TenantID: tenantID}.Mutate(injected(), account())
	if err != nil {
		t.Fatal(err)
	}
	c := config()
	c.ProxyImage = "registry.example.test/" + path.Base(azwi.ProxyImage)
	c.ProxyInitImage = "registry.example.test/" + path.Base(azwi.ProxyInitImage)
	pod = mutate(t, pod, account(), c)
	if got := []string{pod.Spec.InitContainers[0].Image, pod.Spec.InitContainers[1].Image}; !slices.Equal(got, []string{c.ProxyInitImage, c.ProxyImage}) {
		t.Errorf("images %q, want the configured ones", got)
	}
}

// TestAuthorsContainer checks that nothing of a container of the author survives its replacement,
// about which there is a warning.
func TestAuthorsContainer(t *testing.T) {
	pod := injected()
	pod.Spec.InitContainers = []corev1.Container{{Name: inject.ProxyName, Image: "registry.example.test/team/envoy:1", WorkingDir: "/etc/envoy"}}
	if got := mutate(t, pod, account(), config()).Spec.InitContainers[1]; got.WorkingDir != "" {
		t.Errorf("the container keeps %s", got.WorkingDir)
	}
}
