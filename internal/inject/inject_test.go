package inject_test

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
)

func TestUnlabelled(t *testing.T) {
	for _, label := range []string{"", "false", "True"} {
		pod := injected()
		pod.Labels[inject.UseLabel] = label
		result, err := inject.Pod(pod, account(), config())
		if err != nil || len(result.Patch) > 0 || len(result.Warnings) != 1 {
			t.Errorf("label %q: %v, %v, want one warning and no change", label, result, err)
		}
	}
}

// TestBoolean checks that false injects no proxy, but does inject the token.
func TestBoolean(t *testing.T) {
	for value, want := range map[string]bool{"true": true, "True": true, "1": true, "false": false, "0": false, "F": false} {
		pod := mutate(t, labelled(annotate(inject.InjectProxyAnnotation, value)), account(), config())
		if got := find(pod.Spec.InitContainers, inject.ProxyName) != nil; got != want {
			t.Errorf("%q: injected %t, want %t", value, got, want)
		}
		checkTokens(t, pod)
	}
}

func TestTenant(t *testing.T) {
	a := account()
	if got := value(&mutate(t, labelled(), a, config()).Spec.Containers[0], "AZURE_TENANT_ID"); got != tenantID {
		t.Errorf("the configuration's tenant: %s", got)
	}
	a.Annotations[inject.TenantIDAnnotation] = objectID
	if got := value(&mutate(t, labelled(), a, config()).Spec.Containers[0], "AZURE_TENANT_ID"); got != objectID {
		t.Errorf("the service account's tenant: %s", got)
	}
}

func expiration(pod *corev1.Pod) int64 {
	for _, v := range pod.Spec.Volumes {
		if v.Projected != nil && v.Projected.Sources[0].ServiceAccountToken != nil {
			return *v.Projected.Sources[0].ServiceAccountToken.ExpirationSeconds
		}
	}
	return 0
}

func TestExpiration(t *testing.T) {
	for _, c := range []struct {
		pod, account string
		want         int64
	}{{"", "", 3600}, {"", "7200", 7200}, {"86400", "7200", 86400}, {"3600", "", 3600}} {
		a, pod := account(), labelled()
		if c.account != "" {
			a.Annotations[inject.TokenExpirationAnnotation] = c.account
		}
		if c.pod != "" {
			annotate(inject.TokenExpirationAnnotation, c.pod)(pod)
		}
		once := mutate(t, pod, a, config())
		if got := expiration(once); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
		annotate(inject.TokenExpirationAnnotation, "10800")(once)
		if got := expiration(mutate(t, once, a, config())); got != 10800 {
			t.Errorf("%+v: changed to 10800: %d", c, got)
		}
	}
}

// TestSkipped checks that a skipped container gets no token and no variables, also not the one of
// the mode without a redirect.
func TestSkipped(t *testing.T) {
	pod := mutate(t, injected(initNamed("migrate"), initNamed("wait"), annotate(inject.RedirectAnnotation, "none"),
		annotate(inject.SkipContainersAnnotation, " app ;; wait;")), account(), config())
	for name, want := range map[string]bool{"app": false, "wait": false, "migrate": true, inject.ProxyName: true} {
		c := find(append(pod.Spec.InitContainers, pod.Spec.Containers...), name)
		if got := len(c.Env) > 0; got != want {
			t.Errorf("%s: has variables %t, want %t", name, got, want)
		}
		if got := len(c.VolumeMounts) > 0; got != want {
			t.Errorf("%s: has mounts %t, want %t", name, got, want)
		}
	}
}

// TestKept checks that variables of the author are not changed.
func TestKept(t *testing.T) {
	pod := injected(annotate(inject.RedirectAnnotation, "none"), annotate(inject.AppServiceAnnotation, "false"))
	pod.Spec.Containers[0].Env = []corev1.EnvVar{
		{Name: "AZURE_CLIENT_ID", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{Key: "id"}}},
		{Name: "AZURE_AUTHORITY_HOST", Value: "https://entra.example.test/"},
		{Name: "AZURE_TENANT_ID", Value: ""},
		{Name: "AZURE_POD_IDENTITY_AUTHORITY_HOST", Value: "http://127.0.0.1:9"},
	}
	want := slices.Clone(pod.Spec.Containers[0].Env)
	got := mutate(t, pod, account(), config()).Spec.Containers[0].Env
	if !slices.EqualFunc(got[:len(want)], want, func(a, b corev1.EnvVar) bool { return a.String() == b.String() }) || len(got) != len(want)+1 {
		t.Errorf("variables %v, want %v and the token's file", got, want)
	}
}

// TestInitContainer checks that the init container has the capability NET_ADMIN and no other, and
// neither the token nor its variables.
func TestInitContainer(t *testing.T) {
	c := mutate(t, injected(podRunsAs(1000)), account(), config()).Spec.InitContainers[0]
	if c.Name != inject.ProxyInitName || len(c.VolumeMounts) != 0 || value(&c, "AZURE_TENANT_ID") != "(unset)" {
		t.Errorf("%s: mounts %v, variables %v", c.Name, c.VolumeMounts, c.Env)
	}
	s := c.SecurityContext
	if *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || *s.RunAsUser != 0 || *s.RunAsGroup != 0 || *s.RunAsNonRoot {
		t.Errorf("security context %v", s)
	}
	if !slices.Equal(s.Capabilities.Add, []corev1.Capability{"NET_ADMIN"}) || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("capabilities %v", s.Capabilities)
	}
}

// TestInitBackend checks the variable and the capabilities for each backend.
func TestInitBackend(t *testing.T) {
	for backend, capabilities := range map[string][]corev1.Capability{
		"": {"NET_ADMIN"}, "native": {"NET_ADMIN"}, "nft": {"NET_ADMIN"}, "legacy": {"NET_ADMIN", "NET_RAW"},
	} {
		c, err := parseFlags("--tenant-id=22222222-2222-4222-8222-222222222222", "--proxy-init-backend="+backend)
		if err != nil {
			t.Fatal(err)
		}
		init := mutate(t, injected(), account(), c).Spec.InitContainers[0]
		if got := value(&init, "PROXY_BACKEND"); got != cmp.Or(backend, "(unset)") || !slices.Equal(init.SecurityContext.Capabilities.Add, capabilities) {
			t.Errorf("%q: PROXY_BACKEND %s, capabilities %v, want %v", backend, got, init.SecurityContext.Capabilities.Add, capabilities)
		}
		validator := mutate(t, byCNI("cni-sealed"), account(), c).Spec.InitContainers[0]
		if got := value(&validator, "PROXY_BACKEND"); got != "(unset)" || len(validator.SecurityContext.Capabilities.Add) > 0 {
			t.Errorf("%q: the validator has PROXY_BACKEND %s, capabilities %v", backend, got, validator.SecurityContext.Capabilities.Add)
		}
	}
	_, err := parseFlags("--proxy-init-backend=iptables")
	if want := `--proxy-init-backend "iptables": must be auto, native, nft or legacy`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestProxySettings checks the proxy's variable for each annotation.
func TestProxySettings(t *testing.T) {
	resourceID := "/subscriptions/" + objectID + "/resourceGroups/shop/providers/Microsoft.ManagedIdentity/userAssignedIdentities/app"
	for _, c := range []struct{ annotation, value, variable, want string }{
		{inject.ProxyPortAnnotation, "1", "PROXY_PORT", "1"},
		{inject.ProxyPortAnnotation, "65535", "PROXY_PORT", "65535"},
		{inject.IdentitiesAnnotation, objectID + "=" + clientID + ", " + resourceID + "=" + clientID, "PROXY_IDENTITY", objectID + "=" + clientID + "," + resourceID + "=" + clientID},
		{inject.PrefetchAnnotation, "https://vault.azure.net, https://storage.azure.com/", "PROXY_PREFETCH", "https://vault.azure.net,https://storage.azure.com/"},
		{inject.AllowedClientIDsAnnotation, clientID, "PROXY_ALLOWED_CLIENT_IDS", clientID},
		{inject.LogLevelAnnotation, "debug", "PROXY_LOG_LEVEL", "debug"},
		{inject.AdminPortAnnotation, "8001", "PROXY_ADMIN_ADDRESS", ":8001"},
		{inject.RedirectAnnotation, "sealed", "PROXY_IMDS_PASSTHROUGH", "off"},
		{inject.RedirectAnnotation, "none", "PROXY_IMDS_PASSTHROUGH", "off"},
		{inject.RedirectAnnotation, "forward", "PROXY_IMDS_PASSTHROUGH", "(unset)"},
		{inject.ProxyResourcesAnnotation, `{"limits":{"memory":"100M"}}`, "GOMEMLIMIT", "75000000B"},
		{inject.ProxyResourcesAnnotation, `{}`, "GOMEMLIMIT", "(unset)"},
		{inject.ProxyResourcesAnnotation, `{"limits":{"memory":"0"}}`, "GOMEMLIMIT", "(unset)"},
	} {
		pod := mutate(t, injected(annotate(c.annotation, c.value)), account(), config())
		if got := value(find(pod.Spec.InitContainers, inject.ProxyName), c.variable); got != c.want {
			t.Errorf("%s: %s: %s is %s, want %s", c.annotation, c.value, c.variable, got, c.want)
		}
	}
}

// TestChanged checks that an injected pod is updated when its annotations or the configuration
// change.
func TestChanged(t *testing.T) {
	plain := mutate(t, injected(), account(), config())
	newer := config()
	newer.ProxyImage, newer.ProxyInitImage = "registry.example.test/imds-oidc-proxy:v2", "registry.example.test/imds-oidc-proxy-init:v2"
	postStart := config()
	postStart.PostStart = true
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		config inject.Config
	}{
		"sealed":     {annotate(inject.RedirectAnnotation, "sealed"), config()},
		"no init":    {annotate(inject.RedirectAnnotation, "none"), config()},
		"port":       {annotate(inject.ProxyPortAnnotation, "8080"), config()},
		"admin port": {annotate(inject.AdminPortAnnotation, "8001"), config()},
		"resources":  {annotate(inject.ProxyResourcesAnnotation, `{"limits":{"memory":"128Mi"}}`), config()},
		"image":      {annotate(inject.LogLevelAnnotation, "info"), newer},
		"postStart":  {annotate(inject.LogLevelAnnotation, "info"), postStart},
	} {
		updated := plain.DeepCopy()
		c.change(updated)
		updated = mutate(t, defaulted(updated), account(), c.config)
		fresh := mutate(t, defaulted(injected(c.change)), account(), c.config)
		// Unchanged containers of the updated pod already have the API server's defaults.
		updated, fresh = defaulted(updated), defaulted(fresh)
		for _, ours := range []string{inject.ProxyInitName, inject.ProxyName} {
			got, want := find(append(updated.Spec.InitContainers, updated.Spec.Containers...), ours), find(append(fresh.Spec.InitContainers, fresh.Spec.Containers...), ours)
			if (got == nil) != (want == nil) || got != nil && got.String() != want.String() {
				t.Errorf("%s: %s is\n%v, want\n%v", name, ours, got, want)
			}
		}
	}
}

// TestTampered checks that a container with the name of an injected one is replaced if it differs
// in what it does or may do.
func TestTampered(t *testing.T) {
	for name, change := range map[string]func(*corev1.Container){
		"privileged": func(c *corev1.Container) { c.SecurityContext.Privileged = new(true) },
		"capability": func(c *corev1.Container) {
			c.SecurityContext.Capabilities.Add = append(c.SecurityContext.Capabilities.Add, "SYS_ADMIN")
		},
		"command":    func(c *corev1.Container) { c.Command = []string{"/bin/sh"} },
		"args":       func(c *corev1.Container) { c.Args = []string{"--proxy-port=1"} },
		"setting":    func(c *corev1.Container) { c.Env = append(c.Env, corev1.EnvVar{Name: "PROXY_METADATA", Value: "x"}) },
		"no context": func(c *corev1.Container) { c.SecurityContext = nil },
		"user":       func(c *corev1.Container) { c.SecurityContext.RunAsUser = new(int64(7)) },
		"image":      func(c *corev1.Container) { c.Image = "registry.example.test/other:v1.0.0" },
		"tag":        func(c *corev1.Container) { c.Image = strings.TrimSuffix(c.Image, "v1.0.0") + "v0.9.0" },
		"overridden": func(c *corev1.Container) { c.Env = append(c.Env, corev1.EnvVar{Name: "PROXY_PORT", Value: "1"}) },
		"address": func(c *corev1.Container) {
			c.Env = append(c.Env, corev1.EnvVar{Name: "METADATA_IP", Value: "192.0.2.1"})
		},
		"port": func(c *corev1.Container) {
			c.Env = append(c.Env, corev1.EnvVar{Name: "METADATA_PORT", Value: "81"})
		},
		"startup":      func(c *corev1.Container) { c.StartupProbe = &corev1.Probe{} },
		"envFrom":      func(c *corev1.Container) { c.EnvFrom = []corev1.EnvFromSource{{}} },
		"restart":      func(c *corev1.Container) { c.RestartPolicy = new(corev1.ContainerRestartPolicyOnFailure) },
		"lifecycle":    func(c *corev1.Container) { c.Lifecycle = &corev1.Lifecycle{} },
		"liveness":     func(c *corev1.Container) { c.LivenessProbe = &corev1.Probe{} },
		"readiness":    func(c *corev1.Container) { c.ReadinessProbe = &corev1.Probe{} },
		"memory limit": func(c *corev1.Container) { delete(c.Resources.Limits, corev1.ResourceMemory) },
	} {
		for i := range 2 {
			want := mutate(t, injected(), account(), config())
			pod := want.DeepCopy()
			change(&pod.Spec.InitContainers[i])
			if got := mutate(t, pod, account(), config()); string(encode(t, got)) != string(encode(t, want)) {
				t.Errorf("%s of %s stays: %v", name, want.Spec.InitContainers[i].Name, got.Spec.InitContainers[i])
			}
		}
	}
}

// TestMirrored checks that an image from another registry, as set by a webhook that runs later,
// is not changed back. A warning explains this to an administrator who changed the registry.
func TestMirrored(t *testing.T) {
	pod := mutate(t, injected(), account(), config())
	pod.Spec.InitContainers[1].Image = "mirror.example.test/cache/imds-oidc-proxy:v1.0.0"
	result, err := inject.Pod(pod, account(), config())
	if err != nil || len(result.Patch) > 0 || len(result.Warnings) != 1 || !strings.Contains(result.Warnings[0], "mirror.example.test") {
		t.Errorf("%v, %v, want a warning and no change", result, err)
	}
}

// TestOwnVolume checks that a token of the author is used at its path.
func TestOwnVolume(t *testing.T) {
	pod := injected(initNamed("migrate"))
	pod.Spec.Volumes = []corev1.Volume{{Name: "mine", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t", Audience: azure.Audience}}}}}}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "mine", MountPath: "/tokens"}}
	pod = mutate(t, pod, account(), config())
	checkTokens(t, pod)
	if len(pod.Spec.Volumes) != 1 {
		t.Errorf("volumes %v, want only the author's", pod.Spec.Volumes)
	}
	for _, name := range []string{"app", "migrate", inject.ProxyName} {
		if got := value(find(append(pod.Spec.InitContainers, pod.Spec.Containers...), name), "AZURE_FEDERATED_TOKEN_FILE"); got != "/tokens/t" {
			t.Errorf("%s: token at %s, want /tokens/t", name, got)
		}
	}
}

// TestWrongAudience checks that a projected token with another audience is not used.
func TestWrongAudience(t *testing.T) {
	pod := labelled()
	pod.Spec.Volumes = []corev1.Volume{{Name: "vault", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t", Audience: "vault"}}}}}}}
	if pod = mutate(t, pod, account(), config()); len(pod.Spec.Volumes) != 2 {
		t.Errorf("volumes %v, want one more", pod.Spec.Volumes)
	}
}

// TestMirrorPod checks that the API server's copy of a static pod is not changed.
func TestMirrorPod(t *testing.T) {
	result, err := inject.Pod(injected(annotate(corev1.MirrorPodAnnotationKey, "0123")), account(), config())
	if err != nil || len(result.Patch) > 0 || !slices.Equal(result.Warnings, []string{inject.StaticPod}) {
		t.Errorf("%v, %v, want a warning and no change", result, err)
	}
}
