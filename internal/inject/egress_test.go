package inject_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

const corporateProxy = "http://proxy.example.test:3128"

// egress returns the settings of injected proxies behind a corporate proxy, by flags.
func egress(t *testing.T) inject.Config {
	t.Helper()
	c, err := parseFlags("--proxy-https-proxy="+corporateProxy, "--proxy-no-proxy=.example.test", "--proxy-ca-config-map=corporate-ca",
		`--proxy-env={"PROXY_LOG_FORMAT":"console"}`)
	if err != nil {
		t.Fatal(err)
	}
	c.ProxyImage, c.ProxyInitImage = config().ProxyImage, config().ProxyInitImage
	return withTenant(c)
}

// checkEgress checks the variables, the mount and the volume of egress.
func checkEgress(t *testing.T, what string, pod *corev1.Pod, key string) {
	t.Helper()
	proxy := find(pod.Spec.InitContainers, inject.ProxyName)
	for name, want := range map[string]string{"HTTPS_PROXY": corporateProxy, "NO_PROXY": ".example.test", "PROXY_CA_FILE": "/etc/imds-oidc-proxy/ca/ca.crt", "PROXY_LOG_FORMAT": "console"} {
		if got := value(proxy, name); got != want {
			t.Errorf("%s: %s is %s, want %s", what, name, got, want)
		}
	}
	for _, c := range all(pod) {
		if mounted := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.Name == "imds-oidc-proxy-ca" && m.MountPath == "/etc/imds-oidc-proxy/ca" && m.ReadOnly
		}); mounted != (c == proxy) {
			t.Errorf("%s: %s mounts the authorities: %t", what, c.Name, mounted)
		}
		if c != proxy && value(c, "HTTPS_PROXY") != "(unset)" {
			t.Errorf("%s: %s has HTTPS_PROXY", what, c.Name)
		}
	}
	var found []corev1.Volume
	for _, v := range pod.Spec.Volumes {
		if v.ConfigMap != nil {
			found = append(found, v)
		}
	}
	if len(found) != 1 || found[0].ConfigMap.Name != "corporate-ca" || !slices.Equal(found[0].ConfigMap.Items, []corev1.KeyToPath{{Key: key, Path: "ca.crt"}}) || found[0].ConfigMap.Optional != nil {
		t.Errorf("%s: volumes %v", what, found)
	}
	checkValid(t, pod)
}

// TestEgress checks the settings for a corporate proxy, by flags and by annotations, which take
// precedence, and that they are taken back where they are no longer set.
func TestEgress(t *testing.T) {
	byFlags := mutate(t, injected(), account(), egress(t))
	checkEgress(t, "flags", byFlags, "ca.crt")
	annotated := func(p *corev1.Pod) {
		annotate(inject.HTTPSProxyAnnotation, corporateProxy)(p)
		annotate(inject.NoProxyAnnotation, ".example.test")(p)
		annotate(inject.CAConfigMapAnnotation, "corporate-ca/bundle.pem")(p)
		annotate(inject.ProxyEnvAnnotation, `{"PROXY_LOG_FORMAT":"console"}`)(p)
	}
	checkEgress(t, "annotations", mutate(t, injected(annotated), account(), config()), "bundle.pem")
	pod := byFlags.DeepCopy()
	annotated(pod)
	checkEgress(t, "annotations after flags", mutate(t, defaulted(pod), account(), egress(t)), "bundle.pem")

	off := func(p *corev1.Pod) {
		for name, none := range map[string]string{inject.HTTPSProxyAnnotation: "", inject.NoProxyAnnotation: "", inject.CAConfigMapAnnotation: "", inject.ProxyEnvAnnotation: "{}"} {
			annotate(name, none)(p)
		}
	}
	want := string(encode(t, mutate(t, injected(off), account(), config())))
	if got := string(encode(t, mutate(t, injected(off), account(), egress(t)))); got != want {
		t.Errorf("turned off by annotations: got\n%s, want\n%s", got, want)
	}
	pod = byFlags.DeepCopy()
	off(pod)
	variableOf("OTHER", "1")(&pod.Spec.InitContainers[1])
	pod = mutate(t, pod, account(), egress(t))
	if c := &pod.Spec.InitContainers[1]; value(c, "OTHER") != "1" {
		t.Errorf("an addition is lost: %v", c.Env)
	}
	pod.Spec.InitContainers[1].Env = slices.DeleteFunc(pod.Spec.InitContainers[1].Env, func(e corev1.EnvVar) bool { return e.Name == "OTHER" })
	if got := string(encode(t, pod)); got != want {
		t.Errorf("turned off after injection: got\n%s, want\n%s", got, want)
	}
}

// TestEgressRemoved checks that Remove restores the pod, and keeps a volume of the author.
func TestEgressRemoved(t *testing.T) {
	pod := mutate(t, injected(), account(), egress(t))
	if got, want := string(apply(t, encode(t, pod), inject.Remove(pod).Patch)), string(encode(t, injected())); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
	pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "imds-oidc-proxy-ca", MountPath: "/ca"})
	kept := decode(t, apply(t, encode(t, pod), inject.Remove(pod).Patch))
	checkValid(t, kept)
	pod = mutate(t, pod, account(), config())
	checkValid(t, pod)
}

// TestExtraEnv checks that variables of --proxy-env take precedence over the settings with flags
// of their own.
func TestExtraEnv(t *testing.T) {
	c := egress(t)
	pod := mutate(t, injected(annotate(inject.ProxyEnvAnnotation, `{"HTTPS_PROXY":"http://other.example.test"}`)), account(), c)
	if got := value(&pod.Spec.InitContainers[1], "HTTPS_PROXY"); got != "http://other.example.test" {
		t.Errorf("HTTPS_PROXY is %s", got)
	}
	checkValid(t, pod)
}

// TestSettingOverAddition checks that a setting replaces the addition of the same name, with a
// warning if the values differ.
func TestSettingOverAddition(t *testing.T) {
	for addition, warnings := range map[string]int{corporateProxy: 0, "http://other.example.test": 1} {
		pod := mutate(t, injected(), account(), config())
		variableOf("HTTPS_PROXY", addition)(&pod.Spec.InitContainers[1])
		result, err := inject.Pod(pod, account(), egress(t))
		if err != nil || len(result.Warnings) != warnings || warnings > 0 && !strings.Contains(result.Warnings[0], "loses env HTTPS_PROXY,") {
			t.Errorf("%s: %v, %q, want %d warnings", addition, err, result.Warnings, warnings)
		}
		checkEgress(t, addition, mutate(t, pod, account(), egress(t)), "ca.crt")
	}
}

// TestRecordedResources checks that resources of an earlier configuration do not stay, and that
// those of others do.
func TestRecordedResources(t *testing.T) {
	given := []string{`{}`, `{"limits":{"cpu":"1","memory":"128Mi"}}`, `{"requests":{"cpu":"7m"}}`, `{"limits":{"memory":"32Mi"},"requests":{"memory":"32Mi","ephemeral-storage":"1Mi"}}`, ""}
	change := func(pod *corev1.Pod, resources string) *corev1.Pod {
		for _, name := range []string{inject.ProxyResourcesAnnotation, inject.ProxyInitResourcesAnnotation} {
			delete(pod.Annotations, name)
			if resources != "" {
				annotate(name, resources)(pod)
			}
		}
		return pod
	}
	for _, before := range given {
		for _, after := range given {
			once := mutate(t, change(injected(), before), account(), config())
			got := string(encode(t, defaulted(mutate(t, change(defaulted(once), after), account(), config()))))
			if want := string(encode(t, defaulted(mutate(t, change(defaulted(injected()), after), account(), config())))); sorted(t, got) != sorted(t, want) {
				t.Errorf("%s after %s: got\n%s, want\n%s", after, before, got, want)
			}
		}
	}
}

// sorted returns the containers of a pod, with their variables and mounts in one order.
func sorted(t *testing.T, document string) string {
	t.Helper()
	pod := decode(t, []byte(document))
	for _, c := range all(pod) {
		slices.SortFunc(c.Env, func(a, b corev1.EnvVar) int { return strings.Compare(a.Name, b.Name) })
		slices.SortFunc(c.VolumeMounts, func(a, b corev1.VolumeMount) int { return strings.Compare(a.Name, b.Name) })
	}
	text, err := json.Marshal(pod.Spec.InitContainers)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestEgressRefusals checks the errors of the settings, which do not contain a password.
func TestEgressRefusals(t *testing.T) {
	for _, c := range []struct{ annotation, value, want string }{
		{inject.HTTPSProxyAnnotation, "ftp://u:c4n4ry@proxy.example.test", "must be the URL of a proxy, for example http://<HOST>:<PORT>"},
		{inject.NoProxyAnnotation, "a\nb", `"a\nb": must be one line`},
		{inject.CAConfigMapAnnotation, "Corporate CA", `"Corporate CA": must be the name of a ConfigMap, or NAME/KEY`},
		{inject.CAConfigMapAnnotation, "ca/", `"ca/": must be the name of a ConfigMap, or NAME/KEY`},
		{inject.CAConfigMapAnnotation, "ca/a/b", `"ca/a/b": must be the name of a ConfigMap, or NAME/KEY`},
		{inject.ProxyEnvAnnotation, "", `must be a JSON object of strings, such as {"PROXY_LOG_FORMAT": "console"}`},
		{inject.ProxyEnvAnnotation, "null", "must be a JSON object of strings"},
		{inject.ProxyEnvAnnotation, `{"A":"c4n4ry","B":1}`, "must be a JSON object of strings"},
		{inject.ProxyEnvAnnotation, `{"A=":"c4n4ry"}`, `"A=": must be the name of a variable`},
		{inject.ProxyEnvAnnotation, `{"PROXY_PORT":"c4n4ry"}`, `"PROXY_PORT": is set by injection: use the annotation or the flag of this setting`},
		{inject.ProxyEnvAnnotation, `{"AZURE_CLIENT_ID":"c4n4ry"}`, `"AZURE_CLIENT_ID": is set by injection`},
		{inject.ProxyEnvAnnotation, `{"IMDS_OIDC_PROXY_INJECTED":"c4n4ry"}`, `"IMDS_OIDC_PROXY_INJECTED": is set by injection`},
	} {
		_, err := inject.Pod(injected(annotate(c.annotation, c.value)), account(), config())
		checkRefusal(t, err, "annotation "+c.annotation+": "+c.want)
		if strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("%s: the error contains the value: %v", c.annotation, err)
		}
	}
	for _, source := range []corev1.VolumeSource{{}, {ConfigMap: &corev1.ConfigMapVolumeSource{}}} {
		_, err := inject.Pod(injected(func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "imds-oidc-proxy-ca", VolumeSource: source}}
			mounts("imds-oidc-proxy-ca", "/mine")(&p.Spec.Containers[0])
		}), account(), egress(t))
		checkRefusal(t, err, "spec.volumes[imds-oidc-proxy-ca].name: this name is reserved for the injected volume; use another name")
	}
}

// TestRequireBlocked checks that the proxy of a pod without a redirect can be told to require that
// the node's IMDS is blocked, also for all pods, and that a proxy that forwards to it is not.
func TestRequireBlocked(t *testing.T) {
	const name = "PROXY_REQUIRE_IMDS_BLOCKED"
	all := config()
	all.ProxyEnv = []corev1.EnvVar{{Name: name, Value: "true"}}
	annotated := annotate(inject.ProxyEnvAnnotation, `{"`+name+`":"true"}`)
	for _, c := range []struct {
		redirect string
		want     string
	}{{"none", "true"}, {"sealed", "true"}, {"forward", "(unset)"}} {
		for _, pod := range []*corev1.Pod{
			mutate(t, injected(annotate(inject.RedirectAnnotation, c.redirect)), account(), all),
			mutate(t, injected(annotate(inject.RedirectAnnotation, c.redirect), annotated), account(), config()),
		} {
			if got := value(find(pod.Spec.InitContainers, inject.ProxyName), name); got != c.want {
				t.Errorf("%s: %s is %s, want %s", c.redirect, name, got, c.want)
			}
		}
	}
	// The setting does not stay when the pod gets a redirect.
	pod := mutate(t, injected(annotate(inject.RedirectAnnotation, "none")), account(), all)
	annotate(inject.RedirectAnnotation, "forward")(pod)
	pod = mutate(t, pod, account(), all)
	if got := value(find(pod.Spec.InitContainers, inject.ProxyName), name); got != "(unset)" {
		t.Errorf("after a change to forward: %s is %s", name, got)
	}
	if len(all.ProxyEnv) != 1 {
		t.Error("Pod changed the configuration")
	}
}
