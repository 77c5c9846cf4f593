package inject_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

// TestEarlierValues checks that a pod whose service account, annotations or configuration change
// after injection becomes the same pod as one that had them from the start, in every way of
// injection. The API server calls the webhook again after another webhook has changed the pod.
func TestEarlierValues(t *testing.T) {
	bound, china, plain, old := config(), config(), config(), config()
	bound.TokenEndpoint = binding()
	china.TenantID, china.AuthorityHost = objectID, "https://login.chinacloudapi.cn/"
	old.PostStart = true
	other, none := account(), account()
	other.Name, other.Annotations = "other", map[string]string{inject.ClientIDAnnotation: otherID, inject.TenantIDAnnotation: objectID}
	none.Annotations = nil
	nothing := func(*corev1.Pod) {}
	type state struct {
		change  func(*corev1.Pod)
		account *corev1.ServiceAccount
		config  inject.Config
	}
	states := map[string]state{
		"first account":     {nothing, account(), plain},
		"another account":   {nothing, other, plain},
		"without client ID": {nothing, none, plain},
		"no account":        {nothing, nil, plain},
		"another cloud":     {nothing, account(), china},
		"identity binding":  {annotate(inject.TokenEndpointPrefix+"identity-binding", "true"), account(), bound},
		"no redirect":       {annotate(inject.RedirectAnnotation, "none"), other, plain},
		"another port": {func(p *corev1.Pod) {
			annotate(inject.RedirectAnnotation, "none")(p)
			annotate(inject.ProxyPortAnnotation, "9000")(p)
		}, account(), plain},
		"old style":              {nothing, other, old},
		"App Service":            {appServiceOn, account(), plain},
		"App Service, old style": {appServiceOn, other, old},
		"no redirect, without App Service": {func(p *corev1.Pod) {
			noRedirect(p)
			appServiceOff(p)
		}, account(), plain},
	}
	for _, way := range []string{"true", "false"} {
		for _, own := range []bool{false, true} {
			for before, from := range states {
				for after, to := range states {
					build := func(s state) *corev1.Pod {
						pod := labelled(initNamed("migrate"), annotate(inject.InjectProxyAnnotation, way))
						if own {
							ownToken(pod)
							sets("AZURE_TENANT_ID", tenantID)(pod)
						}
						s.change(pod)
						return pod
					}
					from.config.RecordValues, to.config.RecordValues = true, true
					pod := defaulted(mutate(t, build(from), from.account, from.config))
					pod.Annotations = build(to).Annotations
					if record, ok := mutate(t, build(from), from.account, from.config).Annotations["imds-oidc-proxy/injected"]; ok {
						pod.Annotations["imds-oidc-proxy/injected"] = record
					}
					got := defaulted(mutate(t, pod, to.account, to.config))
					want := defaulted(mutate(t, build(to), to.account, to.config))
					checkSameEnv(t, before+" to "+after+", proxy "+way, got, want)
					if result, err := inject.Pod(got, to.account, to.config); err != nil || len(result.Patch) > 0 {
						t.Errorf("%s to %s: another pass: %v, %v", before, after, result.Patch, err)
					}
				}
			}
		}
	}
}

// checkSameEnv compares the variables of application containers, except for the path of the token,
// which depends on the mount.
func checkSameEnv(t *testing.T, what string, got, want *corev1.Pod) {
	t.Helper()
	variables := func(c *corev1.Container) string {
		var b strings.Builder
		for _, name := range []string{"AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_AUTHORITY_HOST", "AZURE_KUBERNETES_TOKEN_PROXY", "AZURE_KUBERNETES_SNI_NAME", "AZURE_KUBERNETES_CA_DATA", "AZURE_KUBERNETES_CA_FILE", "AZURE_POD_IDENTITY_AUTHORITY_HOST"} {
			b.WriteString(name + "=" + value(c, name) + "\n")
		}
		b.WriteString(strings.Join(appService(c), "\n"))
		return b.String()
	}
	for _, name := range []string{"app", "migrate", inject.ProxyName} {
		one, other := find(append(got.Spec.InitContainers, got.Spec.Containers...), name), find(append(want.Spec.InitContainers, want.Spec.Containers...), name)
		if one == nil && other == nil {
			continue
		}
		if g, w := variables(one), variables(other); g != w {
			t.Errorf("%s: %s has\n%s, want\n%s", what, name, g, w)
		}
	}
	checkValid(t, got)
}

// TestRecord checks the annotation of a pod without the proxy: it is written only on request,
// removed with the rest, and an invalid one records nothing.
func TestRecord(t *testing.T) {
	const record = "imds-oidc-proxy/injected"
	recording := config()
	recording.RecordValues = true
	pod := mutate(t, labelled(), account(), recording)
	if got := pod.Annotations[record]; !strings.Contains(got, `"AZURE_CLIENT_ID":"`+clientID+`"`) || strings.Contains(got, "AZURE_FEDERATED_TOKEN_FILE") {
		t.Errorf("the record is %s", got)
	}
	if got, want := string(apply(t, encode(t, pod), inject.Remove(pod).Patch)), string(encode(t, labelled())); got != want {
		t.Errorf("removed: got\n%s, want\n%s", got, want)
	}
	for what, pod := range map[string]*corev1.Pod{
		"not requested":  mutate(t, labelled(), account(), config()),
		"with the proxy": mutate(t, injected(), account(), recording),
		"proxy added":    mutate(t, func() *corev1.Pod { annotate(inject.InjectProxyAnnotation, "true")(pod); return pod }(), account(), recording),
	} {
		if got, exists := pod.Annotations[record]; exists {
			t.Errorf("%s: the record is %s", what, got)
		}
	}
	for _, invalid := range []string{"", "junk", "[]", `{"AZURE_CLIENT_ID":1}`} {
		pod := mutate(t, labelled(), account(), recording)
		pod.Annotations[record] = invalid
		other := account()
		other.Annotations[inject.ClientIDAnnotation] = otherID
		if got := value(&mutate(t, pod, other, recording).Spec.Containers[0], "AZURE_CLIENT_ID"); got != clientID {
			t.Errorf("record %q: the client ID is changed to %s", invalid, got)
		}
	}
}
