package inject_test

import (
	"errors"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/azwi"
)

const certificate = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"

// bound selects AKS's identity binding for a pod.
var bound = annotate(inject.IdentityBindingAnnotation, "true")

// aks returns AKS's webhook, with its certificate authorities in another place than AKS's if
// change says so.
func aks(change ...func(*azwi.TokenEndpoint)) azwi.Webhook {
	w := azwi.Webhook{NativeSidecar: true, TenantID: tenantID, Endpoint: azwi.AKS()}
	for _, c := range change {
		c(&w.Endpoint)
	}
	return w
}

// byAKS returns the pod after AKS's webhook.
func byAKS(t testing.TB, w azwi.Webhook, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	pod, err := w.Mutate(pod, account())
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// authoritiesOf has the places of the certificate authorities that AKS's webhook supports.
var authoritiesOf = map[string]func(*azwi.TokenEndpoint){
	"ConfigMap":          func(*azwi.TokenEndpoint) {},
	"ClusterTrustBundle": func(e *azwi.TokenEndpoint) { e.CAConfigMap, e.CASigner = "", "example.test/signer" },
	"data":               func(e *azwi.TokenEndpoint) { e.CAConfigMap, e.CAData = "", certificate },
}

// TestBesideAKS runs AKS's webhook on the same pod, before or after ours, as TestBesideAzwi does.
// The injected proxy has what AKS's webhook gives to the application's containers.
func TestBesideAKS(t *testing.T) {
	for _, order := range []string{"azwi ours", "ours azwi", "ours azwi ours", "azwi ours azwi", "azwi ours azwi ours", "ours azwi ours azwi"} {
		for place, change := range authoritiesOf {
			for version, layout := range map[string]azwi.Layout{"v1.6.0": azwi.V160, "newer": azwi.Newer} {
				for _, redirect := range []string{"forward", "none"} {
					if strings.HasSuffix(order, "ours azwi") && !azwiAgrees(order, layout, true, redirect) {
						continue
					}
					t.Run(strings.Join([]string{order, place, version, redirect}, "/"), func(t *testing.T) {
						w := aks(change)
						w.Layout = layout
						testBesideAKS(t, strings.Fields(order), w, redirect)
					})
				}
			}
		}
	}
}

func testBesideAKS(t *testing.T, order []string, w azwi.Webhook, redirect string) {
	pod := injected(initNamed("migrate"), bound, annotate(inject.RedirectAnnotation, redirect))
	for _, webhook := range order {
		if pod = defaulted(pod); webhook == "ours" {
			pod = mutate(t, pod, account(), config())
		} else {
			pod = byAKS(t, w, pod)
		}
	}
	checkValid(t, pod)
	checkOurs(t, pod, config(), redirect)
	checkBound(t, pod, w.Endpoint, "app", "migrate", inject.ProxyName)
	if result, err := inject.Pod(defaulted(pod), account(), config()); err != nil || len(result.Patch) > 0 || len(result.Warnings) > 0 && redirect != "none" {
		t.Errorf("another run: %v, %q, %v, want no change", result.Patch, result.Warnings, err)
	}
}

// checkBound checks that containers have the variables of the token proxy, a token for it, and its
// certificate authorities.
func checkBound(t testing.TB, pod *corev1.Pod, e azwi.TokenEndpoint, containers ...string) {
	t.Helper()
	for _, c := range all(pod) {
		if !slices.Contains(containers, c.Name) {
			continue
		}
		for name, want := range map[string]string{azure.EnvTokenProxy: e.TokenProxy, azure.EnvSNIName: e.SNIName, azure.EnvClientID: clientID, azure.EnvTenantID: tenantID} {
			if got := value(c, name); got != want {
				t.Errorf("%s: %s is %s, want %s", c.Name, name, got, want)
			}
		}
		if !slices.Contains(filesAt(pod, c, value(c, azure.EnvFederatedTokenFile)), "token for "+azure.BindingAudience) {
			t.Errorf("%s: there is no token for %s at %s: mounts %v", c.Name, azure.BindingAudience, value(c, azure.EnvFederatedTokenFile), c.VolumeMounts)
		}
		if data := value(c, azure.EnvCAData); e.CAData != "" && data != e.CAData {
			t.Errorf("%s: the certificate authorities are %s", c.Name, data)
		}
		if file := value(c, azure.EnvCAFile); e.CAData == "" && !slices.Contains(filesAt(pod, c, file), "authorities") {
			t.Errorf("%s: there are no certificate authorities at %s: mounts %v", c.Name, file, c.VolumeMounts)
		}
	}
}

// filesAt returns what is at a path in a container: a token, or certificate authorities.
func filesAt(pod *corev1.Pod, c *corev1.Container, file string) (found []string) {
	for _, m := range c.VolumeMounts {
		for _, v := range pod.Spec.Volumes {
			if v.Name != m.Name {
				continue
			}
			if v.ConfigMap != nil && strings.HasPrefix(file, m.MountPath) {
				found = append(found, "authorities")
			}
			if v.Projected == nil {
				continue
			}
			for _, s := range v.Projected.Sources {
				switch {
				case s.ServiceAccountToken != nil && path.Join(m.MountPath, s.ServiceAccountToken.Path) == file:
					found = append(found, "token for "+s.ServiceAccountToken.Audience)
				case s.ClusterTrustBundle != nil && path.Join(m.MountPath, s.ClusterTrustBundle.Path) == file,
					s.ConfigMap != nil && path.Join(m.MountPath, s.ConfigMap.Items[0].Path) == file:
					found = append(found, "authorities")
				}
			}
		}
	}
	return found
}

// TestBoundTemplate checks a pod template of a manifest, which AKS's webhook changes only in the
// pods that are made of it, under another name. The proxy then has what it needs, also without our
// webhook, which changes nothing if it runs too.
func TestBoundTemplate(t *testing.T) {
	for _, layout := range []azwi.Layout{azwi.V160, azwi.Newer} {
		for place, change := range authoritiesOf {
			w := aks(change)
			w.Layout = layout
			pod := mutate(t, injected(initNamed("migrate"), bound, func(p *corev1.Pod) { p.Name = "" }), account(), config())
			pod.GenerateName = "app-"
			pod = byAKS(t, w, pod)
			checkValid(t, pod)
			checkBound(t, pod, w.Endpoint, "app", "migrate", inject.ProxyName)
			if result, err := inject.Pod(defaulted(pod), account(), config()); err != nil || len(result.Patch) > 0 {
				t.Errorf("%s: our webhook: %v, %v, want no change", place, result.Patch, err)
			}
		}
	}
}

// TestBoundWithoutProxy checks that AKS's volume stays in a pod that gets no proxy, and that the
// token is the one for the token proxy if our webhook is called first.
func TestBoundWithoutProxy(t *testing.T) {
	template := mutate(t, labelled(bound, func(p *corev1.Pod) { p.Name = "" }), account(), config())
	template.GenerateName = "app-"
	for name, pod := range map[string]*corev1.Pod{
		"after":    mutate(t, byAKS(t, aks(), labelled(bound)), account(), config()),
		"before":   byAKS(t, aks(), mutate(t, labelled(bound), account(), config())),
		"template": byAKS(t, aks(), template),
	} {
		checkValid(t, pod)
		checkBound(t, pod, azwi.AKS(), "app")
		if result, err := inject.Pod(pod, account(), config()); err != nil || len(result.Patch) > 0 {
			t.Errorf("%s: another run: %v, %v", name, result.Patch, err)
		}
	}
}

// TestBoundSkipped checks a pod whose author keeps the token out of the application's container:
// only the proxy gets the variables, from the one that AKS's webhook has injected, or from its
// second call.
func TestBoundSkipped(t *testing.T) {
	skip := annotate(inject.SkipContainersAnnotation, "app")
	for name, pod := range map[string]*corev1.Pod{
		"after":  mutate(t, byAKS(t, aks(), injected(bound, skip)), account(), config()),
		"before": mutate(t, byAKS(t, aks(), mutate(t, injected(bound, skip), account(), config())), account(), config()),
	} {
		checkValid(t, pod)
		checkBound(t, pod, azwi.AKS(), inject.ProxyName)
		if app := find(pod.Spec.Containers, "app"); len(app.Env)+len(app.VolumeMounts) > 0 {
			t.Errorf("%s: the application has %v, %v", name, app.Env, app.VolumeMounts)
		}
	}
}

// TestBoundByFlags checks that a configured endpoint takes precedence over that of AKS's webhook.
func TestBoundByFlags(t *testing.T) {
	c := config()
	c.TokenEndpoint = binding()
	pod := mutate(t, byAKS(t, aks(), injected(bound)), account(), c)
	if got := value(find(pod.Spec.InitContainers, inject.ProxyName), azure.EnvTokenProxy); got != string(binding().TokenProxy) {
		t.Errorf("the proxy uses %s", got)
	}
	c.TokenEndpoint.AnnotationSuffix = "custom" // and the pod has AKS's annotation
	pod = mutate(t, byAKS(t, aks(), injected(bound)), account(), c)
	checkBound(t, pod, azwi.AKS(), "app", inject.ProxyName)
}

// TestUnbound checks that neither the variables alone nor an annotation with the value false change
// where the proxy gets its tokens.
func TestUnbound(t *testing.T) {
	for _, pod := range []*corev1.Pod{
		injected(bindBy("https://token-proxy.example.test", nil)),
		injected(annotate(inject.IdentityBindingAnnotation, "False"), bindBy("https://token-proxy.example.test", nil)),
	} {
		proxy := find(mutate(t, pod, account(), config()).Spec.InitContainers, inject.ProxyName)
		if got := value(proxy, azure.EnvTokenProxy); got != "(unset)" {
			t.Errorf("the proxy uses %s", got)
		}
	}
}

// bindBy gives the pod's container variables of an identity binding that are not AKS's, and mounts.
func bindBy(tokenProxy string, more map[string]string, mounts ...corev1.VolumeMount) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := &p.Spec.Containers[0]
		c.Env = append(c.Env, corev1.EnvVar{Name: azure.EnvTokenProxy, Value: tokenProxy})
		for name, value := range more {
			c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value})
		}
		c.VolumeMounts = append(c.VolumeMounts, mounts...)
		p.Spec.Volumes = append(p.Spec.Volumes,
			corev1.Volume{Name: "ca", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "ca"}}}})
	}
}

// TestBoundByAnotherVolume checks that the proxy gets the volume with the certificate authorities
// if it is not the token's.
func TestBoundByAnotherVolume(t *testing.T) {
	for file, mounts := range map[string][]corev1.VolumeMount{
		"/etc/ca/tls.crt":        {{Name: "ca", MountPath: "/etc/ca"}},
		"/etc/ca/inner/tls.crt":  {{Name: "token", MountPath: "/etc/ca"}, {Name: "ca", MountPath: "/etc/ca/inner/"}},
		"/etc/ca-file/tls.crt":   {{Name: "ca", MountPath: "/etc/ca-file/tls.crt", SubPath: "tls.crt"}},
		"/etc/ca/../ca2/tls.crt": {{Name: "token", MountPath: "/etc/ca"}, {Name: "ca", MountPath: "/etc/ca2"}},
	} {
		pod := mutate(t, injected(bound, bindBy("https://token-proxy.example.test/prefix", map[string]string{azure.EnvCAFile: file}, mounts...)), account(), config())
		proxy := find(pod.Spec.InitContainers, inject.ProxyName)
		want := mounts[len(mounts)-1]
		want.ReadOnly = true
		if got := value(proxy, azure.EnvCAFile); got != file || !slices.ContainsFunc(proxy.VolumeMounts, func(m corev1.VolumeMount) bool { return reflect.DeepEqual(m, want) }) {
			t.Errorf("the proxy has %s and the mounts %v, want %s and %v", got, proxy.VolumeMounts, file, want)
		}
		if result, err := inject.Pod(defaulted(pod), account(), config()); err != nil || len(result.Patch) > 0 {
			t.Errorf("another run: %v, %v", result.Patch, err)
		}
	}
}

// TestBoundRefused checks pods with an identity binding with which the proxy would not start.
func TestBoundRefused(t *testing.T) {
	const good = "https://token-proxy.example.test"
	file := func(path string) map[string]string { return map[string]string{azure.EnvCAFile: path} }
	for want, change := range map[string]func(*corev1.Pod){
		`annotation azure.workload.identity/use-identity-binding: "1": must be "true" or "false"`:    annotate(inject.IdentityBindingAnnotation, "1"),
		`spec.containers[app].env[AZURE_KUBERNETES_TOKEN_PROXY]: must be an https URL`:               bindBy("http://token-proxy.example.test", nil),
		`spec.containers[app].env[AZURE_KUBERNETES_CA_DATA]: must be certificates in PEM`:            bindBy(good, map[string]string{azure.EnvCAData: "secret"}),
		`spec.containers[app].env[AZURE_KUBERNETES_CA_FILE]: /etc/ca/tls.crt is in no volume of the`: bindBy(good, file("/etc/ca/tls.crt"), corev1.VolumeMount{Name: "ca", MountPath: "/etc/c"}),
		`AZURE_KUBERNETES_CA_FILE]: /etc/ca/tls.crt is in a mount with subPathExpr`:                  bindBy(good, file("/etc/ca/tls.crt"), corev1.VolumeMount{Name: "ca", MountPath: "/etc/ca", SubPathExpr: "$(A)"}),
		`AZURE_KUBERNETES_CA_FILE]: volume "ca" is mounted at /etc/imds-oidc-proxy/ca/, where`:       bindBy(good, file("/etc/imds-oidc-proxy/ca/tls.crt"), corev1.VolumeMount{Name: "ca", MountPath: "/etc/imds-oidc-proxy/ca/"}),
	} {
		_, err := inject.Pod(injected(bound, change), account(), config())
		refusal, ok := errors.AsType[*inject.Refusal](err)
		if !ok || !strings.Contains(refusal.Error(), want) || strings.ContainsAny(refusal.Error(), "\n") || strings.Contains(refusal.Error(), "secret") {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	// Without the proxy there is nothing that could not start.
	if _, err := inject.Pod(labelled(bound, bindBy("http://token-proxy.example.test", nil)), account(), config()); err != nil {
		t.Error(err)
	}
}
