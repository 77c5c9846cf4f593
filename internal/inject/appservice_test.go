package inject_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
)

const (
	endpoint = "http://127.0.0.1:8000/msi/token"
	podUID   = "field metadata.uid"
)

var (
	appServiceOn  = annotate(inject.AppServiceAnnotation, "true")
	appServiceOff = annotate(inject.AppServiceAnnotation, "false")
	noRedirect    = annotate(inject.RedirectAnnotation, "none")
)

// text returns the value of a variable, or the field that it refers to.
func text(c *corev1.Container, name string) string {
	if e := env(c, name); e != nil && e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
		return "field " + e.ValueFrom.FieldRef.FieldPath
	}
	return value(c, name)
}

// appService returns the four variables of a container, and that of the proxy's protocol.
func appService(c *corev1.Container) []string {
	return []string{text(c, "IDENTITY_ENDPOINT"), text(c, "IDENTITY_HEADER"), text(c, "MSI_ENDPOINT"), text(c, "MSI_SECRET"), text(c, "PROXY_APP_SERVICE_HEADER")}
}

const unset = "(unset)"

var (
	four    = []string{endpoint, podUID, endpoint, podUID, unset}
	none    = []string{unset, unset, unset, unset, unset}
	serving = []string{unset, unset, unset, unset, podUID}
)

// TestAppService: the application's containers get all four variables or none, and the proxy
// serves the protocol exactly if they do. Without a redirect this is the default.
func TestAppService(t *testing.T) {
	for _, c := range []struct {
		name       string
		change     []func(*corev1.Pod)
		app, proxy []string
	}{
		{"forward", nil, none, none},
		{"forward, on", []func(*corev1.Pod){appServiceOn}, four, serving},
		{"sealed, on", []func(*corev1.Pod){annotate(inject.RedirectAnnotation, "sealed"), appServiceOn}, four, serving},
		{"none", []func(*corev1.Pod){noRedirect}, four, serving},
		{"none, on", []func(*corev1.Pod){noRedirect, appServiceOn}, four, serving},
		{"none, off", []func(*corev1.Pod){noRedirect, appServiceOff}, none, none},
		{"skipped", []func(*corev1.Pod){appServiceOn, annotate(inject.SkipContainersAnnotation, "app")}, none, serving},
	} {
		pod := mutate(t, injected(append(c.change, initNamed("migrate"))...), account(), config())
		if got := appService(&pod.Spec.Containers[0]); !slices.Equal(got, c.app) {
			t.Errorf("%s: the application has %q, want %q", c.name, got, c.app)
		}
		if got := appService(find(pod.Spec.InitContainers, inject.ProxyName)); !slices.Equal(got, c.proxy) {
			t.Errorf("%s: the proxy has %q, want %q", c.name, got, c.proxy)
		}
		if got := appService(find(pod.Spec.InitContainers, "migrate")); c.name != "skipped" && !slices.Equal(got, c.app) {
			t.Errorf("%s: the init container has %q, want %q", c.name, got, c.app)
		}
		if got := find(pod.Spec.InitContainers, inject.ProxyInitName); got != nil && !slices.Equal(appService(got), none) {
			t.Errorf("%s: the injected init container has %q", c.name, appService(got))
		}
		for what, again := range map[string]*corev1.Pod{"": pod, ", with the API server's defaults": defaulted(pod)} {
			result, err := inject.Pod(again, account(), config())
			kept := func(w string) bool { return strings.Contains(w, "IDENTITY_") && strings.HasPrefix(w, "container") }
			if err != nil || len(result.Patch) > 0 || slices.ContainsFunc(result.Warnings, kept) {
				t.Errorf("%s: second pass%s: %v, %v", c.name, what, result, err)
			}
		}
	}
}

// TestOwnAppService: a container that has one of the variables keeps it and gets none of the
// others, since a pair of two endpoints would send the pod's secret elsewhere. Other containers
// get all of them.
func TestOwnAppService(t *testing.T) {
	fieldRef := func(name, field string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: field}}}
	}
	for _, own := range [][]corev1.EnvVar{
		{{Name: "IDENTITY_ENDPOINT", Value: "http://169.254.1.1/token"}},
		{{Name: "MSI_ENDPOINT", Value: "http://localhost:40342/token"}},
		{{Name: "MSI_ENDPOINT"}},
		{{Name: "IDENTITY_HEADER", Value: "x"}},
		{{Name: "MSI_SECRET", Value: "x"}},
		{fieldRef("MSI_SECRET", "metadata.name")},
		{{Name: "IDENTITY_HEADER", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{Key: "k"}}}},
		{{Name: "IDENTITY_ENDPOINT", Value: endpoint}, {Name: "MSI_ENDPOINT", Value: "http://127.0.0.1:8000/other"}},
		{{Name: "IDENTITY_ENDPOINT", Value: endpoint}, {Name: "IDENTITY_ENDPOINT", Value: "http://127.0.0.1:1"}},
	} {
		pod := injected(appServiceOn, initNamed("migrate"), func(p *corev1.Pod) { p.Spec.Containers[0].Env = slices.Clone(own) })
		after := mutate(t, pod, account(), config())
		app := &after.Spec.Containers[0]
		for _, name := range []string{"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET"} {
			if got, want := text(app, name), text(&pod.Spec.Containers[0], name); got != want {
				t.Errorf("%v: %s is %s, want %s", own, name, got, want)
			}
		}
		if got := appService(find(after.Spec.InitContainers, "migrate")); !slices.Equal(got, four) {
			t.Errorf("%v: another container has %q, want %q", own, got, four)
		}
		for pass, pod := range []*corev1.Pod{pod, after, defaulted(after)} {
			result, err := inject.Pod(pod, account(), config())
			count := 0
			for _, w := range result.Warnings {
				if strings.HasPrefix(w, `container "app" sets `) && strings.Contains(w, "gets none of") {
					count++
				}
			}
			if err != nil || count != 1 || pass > 0 && len(result.Patch) > 0 {
				t.Errorf("%v: pass %d: %v, %v, want one warning", own, pass, result, err)
			}
		}
	}
}

// TestSameAppService: variables of the author with the injected values do not keep the others out.
func TestSameAppService(t *testing.T) {
	pod := mutate(t, injected(appServiceOn, sets("MSI_ENDPOINT", endpoint)), account(), config())
	if got := appService(&pod.Spec.Containers[0]); !slices.Equal(got, four) {
		t.Errorf("got %q, want %q", got, four)
	}
	checkValid(t, pod)
}

// TestAppServiceRestored: if another webhook changes how the proxy gets its secret, the next pass
// restores it. Otherwise the other webhook would know the secret, or the proxy another one than the
// application.
func TestAppServiceRestored(t *testing.T) {
	for what, change := range map[string]func(*corev1.EnvVar){
		"a value":       func(e *corev1.EnvVar) { *e = corev1.EnvVar{Name: e.Name, Value: "0123456789abcdef"} },
		"another field": func(e *corev1.EnvVar) { e.ValueFrom.FieldRef.FieldPath = "metadata.namespace" },
		"a Secret": func(e *corev1.EnvVar) {
			e.ValueFrom = &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{Key: "k"}}
		},
		"nothing": func(e *corev1.EnvVar) { *e = corev1.EnvVar{Name: "A", Value: "b"} },
	} {
		want := mutate(t, injected(appServiceOn), account(), config())
		pod := want.DeepCopy()
		change(env(find(pod.Spec.InitContainers, inject.ProxyName), "PROXY_APP_SERVICE_HEADER"))
		got := mutate(t, pod, account(), config())
		if got := text(find(got.Spec.InitContainers, inject.ProxyName), "PROXY_APP_SERVICE_HEADER"); got != podUID {
			t.Errorf("%s: got %s, want %s", what, got, podUID)
		}
	}
	// The kubelet uses the last of two variables with one name.
	pod := mutate(t, injected(appServiceOn), account(), config())
	proxy := find(pod.Spec.InitContainers, inject.ProxyName)
	second := *env(proxy, "PROXY_APP_SERVICE_HEADER").DeepCopy()
	second.ValueFrom.FieldRef.FieldPath = "metadata.name"
	proxy.Env = append(proxy.Env, second)
	got := mutate(t, pod, account(), config())
	checkValid(t, got)
	if got := text(find(got.Spec.InitContainers, inject.ProxyName), "PROXY_APP_SERVICE_HEADER"); got != podUID {
		t.Errorf("two variables: got %s, want %s", got, podUID)
	}
}

// TestAppServiceRemoved: Remove takes out the four variables, and none that the author has added
// after them.
func TestAppServiceRemoved(t *testing.T) {
	pod := injected(noRedirect, initNamed("migrate"))
	after := mutate(t, pod, account(), config())
	removed := apply(t, encode(t, after), inject.Remove(after).Patch)
	if want := encode(t, pod); string(removed) != string(want) {
		t.Errorf("got\n%s, want\n%s", removed, want)
	}
	app := &after.Spec.Containers[0]
	app.Env = slices.DeleteFunc(app.Env, func(e corev1.EnvVar) bool { return slices.Contains([]string{"MSI_ENDPOINT", "MSI_SECRET"}, e.Name) })
	app.Env = append(app.Env, corev1.EnvVar{Name: "MSI_ENDPOINT", Value: "http://127.0.0.1:40342/oauth2"}, corev1.EnvVar{Name: "MSI_SECRET", Value: "x"})
	again := decode(t, apply(t, encode(t, after), inject.Remove(after).Patch))
	if got := appService(&again.Spec.Containers[0]); !slices.Equal(got, []string{unset, unset, "http://127.0.0.1:40342/oauth2", "x", unset}) {
		t.Errorf("got %q, want the author's", got)
	}
}

// TestAppServiceEdited: if the author edits one of the variables after injection, all of them count
// as the author's, with a warning.
func TestAppServiceEdited(t *testing.T) {
	for _, port := range []string{"8000", "9000"} {
		pod := mutate(t, injected(noRedirect), account(), config())
		env(&pod.Spec.Containers[0], "MSI_ENDPOINT").Value = "http://127.0.0.1:40342/oauth2"
		annotate(inject.ProxyPortAnnotation, port)(pod)
		result, err := inject.Pod(pod, account(), config())
		if err != nil || !slices.ContainsFunc(result.Warnings, func(w string) bool { return strings.Contains(w, "gets none of") }) {
			t.Errorf("port %s: %v, %v, want a warning", port, result.Warnings, err)
		}
		got := mutate(t, pod, account(), config())
		want := []string{endpoint, podUID, "http://127.0.0.1:40342/oauth2", podUID, unset}
		if got := appService(&got.Spec.Containers[0]); !slices.Equal(got, want) {
			t.Errorf("port %s: got %q, want %q", port, got, want)
		}
	}
}

// TestAppServiceIsABoolean: another value is refused, with the values that are allowed.
func TestAppServiceIsABoolean(t *testing.T) {
	_, err := inject.Pod(injected(annotate(inject.AppServiceAnnotation, "yes")), account(), config())
	if want := `annotation imds-oidc-proxy/app-service: "yes": must be "true" or "false"`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestAppServicePath: the variables name the path that the proxy serves.
func TestAppServicePath(t *testing.T) {
	if !strings.HasSuffix(endpoint, ":8000"+azure.AppServicePath) {
		t.Errorf("the proxy serves %s", azure.AppServicePath)
	}
}
