package inject_test

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/cnirequest"
	"imds-oidc-proxy/internal/inject"
)

// byCNI returns an injected pod in a mode of the CNI plugin.
func byCNI(mode string, change ...func(*corev1.Pod)) *corev1.Pod {
	return injected(append(change, annotate(inject.RedirectAnnotation, mode))...)
}

// TestCNIRequest: the pod asks the plugin for the redirect of its mode and port.
func TestCNIRequest(t *testing.T) {
	for mode, want := range map[string]string{
		"cni-forward": `{"version":1,"port":8123,"uid":1501,"gid":1501,"sealed":false}`,
		"cni-sealed":  `{"version":1,"port":8123,"uid":1501,"gid":1501,"sealed":true,"deny":["168.63.129.16:80","168.63.129.16:32526"]}`,
		"forward":     "", "sealed": "", "none": "",
	} {
		pod := mutate(t, byCNI(mode, annotate(inject.ProxyPortAnnotation, "8123")), account(), config())
		got, given := pod.Annotations[cnirequest.Annotation]
		if got != want || given != (want != "") {
			t.Errorf("%s: got the annotation %q (%t), want %q", mode, got, given, want)
		}
		if _, err := cnirequest.Parse(got); given && err != nil {
			t.Errorf("%s: the plugin refuses the annotation: %v", mode, err)
		}
		// The proxy forwards instance metadata in the same modes as without the plugin.
		passthrough := value(find(pod.Spec.InitContainers, inject.ProxyName), "PROXY_IMDS_PASSTHROUGH")
		if want := map[bool]string{true: "(unset)", false: "off"}[strings.HasSuffix(mode, "forward")]; passthrough != want {
			t.Errorf("%s: PROXY_IMDS_PASSTHROUGH %s, want %s", mode, passthrough, want)
		}
	}
}

// TestValidator: the init container only proves the redirect. It has no privilege, and another
// user than the proxy.
func TestValidator(t *testing.T) {
	for _, mode := range []string{"cni-forward", "cni-sealed"} {
		pod := mutate(t, byCNI(mode, podRunsAs(0), initNamed("migrate")), account(), config())
		if got, want := names(pod.Spec.InitContainers), []string{inject.ProxyInitName, inject.ProxyName, "migrate"}; !slices.Equal(got, want) {
			t.Fatalf("%s: init containers %q, want %q", mode, got, want)
		}
		c := pod.Spec.InitContainers[0]
		if c.Image != config().ProxyInitImage || !slices.Equal(c.Args, []string{"--validate"}) || c.Command != nil || len(c.VolumeMounts) != 0 {
			t.Errorf("%s: image %s, command %q, arguments %q, mounts %v", mode, c.Image, c.Command, c.Args, c.VolumeMounts)
		}
		s := c.SecurityContext
		if *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || !*s.RunAsNonRoot || *s.RunAsUser != 65532 || *s.RunAsGroup != 65532 {
			t.Errorf("%s: security context %v", mode, s)
		}
		if len(s.Capabilities.Add) != 0 || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s: capabilities %v, seccomp %v", mode, s.Capabilities, s.SeccompProfile)
		}
		if got := value(&c, "PROXY_PORT"); got != "8000" {
			t.Errorf("%s: PROXY_PORT %s", mode, got)
		}
	}
}

// TestNoCNIValidator: the proxy proves the redirect instead of the validator, unless other
// containers start before it.
func TestNoCNIValidator(t *testing.T) {
	without := annotate(inject.CNIValidatorAnnotation, "false")
	noNativeSidecar := config()
	noNativeSidecar.PostStart = true
	for name, test := range map[string]struct {
		pod    *corev1.Pod
		config inject.Config
		proves bool // the proxy
		first  []string
	}{
		"cni-forward":       {byCNI("cni-forward", without), config(), true, []string{inject.ProxyName, "migrate"}},
		"cni-sealed":        {byCNI("cni-sealed", without), config(), true, []string{inject.ProxyName, "migrate"}},
		"true":              {byCNI("cni-sealed", annotate(inject.CNIValidatorAnnotation, "true")), config(), false, []string{inject.ProxyInitName, inject.ProxyName, "migrate"}},
		"no plugin":         {byCNI("forward", without), config(), false, []string{inject.ProxyInitName, inject.ProxyName, "migrate"}},
		"no redirect":       {byCNI("none", without), config(), false, []string{inject.ProxyName, "migrate"}},
		"no native sidecar": {byCNI("cni-forward", without), noNativeSidecar, false, []string{inject.ProxyInitName, "migrate"}},
	} {
		initNamed("migrate")(test.pod)
		pod := mutate(t, test.pod, account(), test.config)
		if got := names(pod.Spec.InitContainers); !slices.Equal(got, test.first) {
			t.Errorf("%s: init containers %q, want %q", name, got, test.first)
		}
		proxy := find(slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers), inject.ProxyName)
		if got := value(proxy, "PROXY_REQUIRE_REDIRECT"); (got == "true") != test.proves {
			t.Errorf("%s: PROXY_REQUIRE_REDIRECT %s", name, got)
		}
		if _, err := inject.Pod(pod, account(), test.config); err != nil {
			t.Errorf("%s: another pass: %v", name, err)
		}
	}
	_, err := inject.Pod(byCNI("cni-forward", annotate(inject.CNIValidatorAnnotation, "no")), account(), config())
	if want := `annotation imds-oidc-proxy/cni-validator: "no": must be "true" or "false"`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

// TestNoCNIValidatorWithoutEffect: a warning says why the annotation has no effect.
func TestNoCNIValidatorWithoutEffect(t *testing.T) {
	noNativeSidecar := config()
	noNativeSidecar.PostStart = true
	other := func(mode string) string {
		return `annotation imds-oidc-proxy/cni-validator: "false" has no effect with redirect ` + mode + ": it is for cni-forward and cni-sealed"
	}
	for _, test := range []struct {
		mode, validator string
		config          inject.Config
		want            string // "": no warning
	}{
		{"cni-forward", "false", config(), ""},
		{"cni-sealed", "false", config(), ""},
		{"forward", "true", config(), ""},
		{"forward", "false", config(), other("forward")},
		{"sealed", "false", config(), other("sealed")},
		{"none", "false", config(), other("none")},
		{"cni-sealed", "false", noNativeSidecar, `annotation imds-oidc-proxy/cni-validator: "false" has no effect: the proxy is not a native sidecar, so other containers start before it`},
	} {
		result, err := inject.Pod(byCNI(test.mode, annotate(inject.CNIValidatorAnnotation, test.validator)), account(), test.config)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, warning := range result.Warnings {
			if strings.Contains(warning, inject.CNIValidatorAnnotation) {
				got = append(got, warning)
			}
		}
		if want := slices.DeleteFunc([]string{test.want}, func(s string) bool { return s == "" }); !slices.Equal(got, want) {
			t.Errorf("%s, %s: got %q, want %q", test.mode, test.validator, got, want)
		}
	}
}

// TestCNIModeChanges: an injected pod whose annotation changes gets what a new pod gets, and
// nothing of the earlier mode is left.
func TestCNIModeChanges(t *testing.T) {
	const without = " without validator"
	modes := []string{"forward", "sealed", "none", "cni-forward", "cni-sealed", "cni-forward" + without, "cni-sealed" + without}
	choose := func(pod *corev1.Pod, mode string) *corev1.Pod {
		name, noValidator := strings.CutSuffix(mode, without)
		annotate(inject.RedirectAnnotation, name)(pod)
		annotate(inject.CNIValidatorAnnotation, strconv.FormatBool(!noValidator))(pod)
		return pod
	}
	for _, before := range modes {
		for _, after := range modes {
			again := choose(mutate(t, choose(injected(), before), account(), config()), after)
			result, err := inject.Pod(again, account(), config())
			if err != nil || strings.Contains(strings.Join(result.Warnings, "\n"), "PROXY_REQUIRE_REDIRECT") {
				t.Errorf("%s to %s: %v, warnings %q", before, after, err, result.Warnings)
			}
			got := mutate(t, again, account(), config())
			want := mutate(t, choose(injected(), after), account(), config())
			if got.Annotations[cnirequest.Annotation] != want.Annotations[cnirequest.Annotation] {
				t.Errorf("%s to %s: annotation %q, want %q", before, after, got.Annotations[cnirequest.Annotation], want.Annotations[cnirequest.Annotation])
			}
			gotInit, wantInit := find(got.Spec.InitContainers, inject.ProxyInitName), find(want.Spec.InitContainers, inject.ProxyInitName)
			if (gotInit == nil) != (wantInit == nil) || gotInit != nil && gotInit.String() != wantInit.String() {
				t.Errorf("%s to %s: init container\n%v, want\n%v", before, after, gotInit, wantInit)
			}
			gotProxy, wantProxy := find(got.Spec.InitContainers, inject.ProxyName), find(want.Spec.InitContainers, inject.ProxyName)
			if g, w := value(gotProxy, "PROXY_REQUIRE_REDIRECT"), value(wantProxy, "PROXY_REQUIRE_REDIRECT"); g != w {
				t.Errorf("%s to %s: PROXY_REQUIRE_REDIRECT %s, want %s", before, after, g, w)
			}
			if result, err := inject.Pod(got, account(), config()); err != nil || len(result.Patch) > 0 {
				t.Errorf("%s to %s: another pass changes %v, %v", before, after, result.Patch, err)
			}
		}
	}
}

// TestCNIRequestOfAuthor: an annotation that the author has written is replaced, and removed from
// a pod whose mode has none. It is no reason to refuse the pod.
func TestCNIRequestOfAuthor(t *testing.T) {
	forged := annotate(cnirequest.Annotation, `{"version":1,"port":1,"uid":1000,"gid":1000,"sealed":false}`)
	if got := mutate(t, byCNI("cni-forward", forged), account(), config()).Annotations[cnirequest.Annotation]; !strings.Contains(got, `"uid":1501`) {
		t.Errorf("got %s", got)
	}
	for name, pod := range map[string]*corev1.Pod{"forward": injected(forged), "without the proxy": labelled(forged, annotate("example.test/note", "x"))} {
		if got, given := mutate(t, pod, account(), config()).Annotations[cnirequest.Annotation]; given {
			t.Errorf("%s: got %s, want no annotation", name, got)
		}
	}
}

// TestRemoveOnlyRequest: if all annotations are injected, none is left, and no empty list.
func TestRemoveOnlyRequest(t *testing.T) {
	pod := labelled(annotate(cnirequest.Annotation, "x"))
	got := decode(t, apply(t, encode(t, pod), inject.Remove(pod).Patch))
	if got.Annotations != nil {
		t.Errorf("got %v", got.Annotations)
	}
}

// TestConfiguredRedirect: the configured mode is that of pods without the annotation.
func TestConfiguredRedirect(t *testing.T) {
	for mode, want := range map[string]string{"": "forward", "forward": "forward", "sealed": "sealed", "none": "none", "cni-forward": "cni-forward", "cni-sealed": "cni-sealed"} {
		c := config()
		c.Redirect = mode
		got := encode(t, mutate(t, injected(), account(), c))
		other := mutate(t, byCNI(want), account(), config())
		delete(other.Annotations, inject.RedirectAnnotation)
		if string(got) != string(encode(t, other)) {
			t.Errorf("%q: got\n%s, want\n%s", mode, got, encode(t, other))
		}
		if pod := mutate(t, byCNI("sealed"), account(), c); pod.Annotations[cnirequest.Annotation] != "" {
			t.Errorf("%q: the pod's annotation has no effect", mode)
		}
	}
}
