package inject_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

func privileged(p *corev1.Pod) {
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
}

func netAdmin(p *corev1.Pod) {
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"CAP_NET_ADMIN"}}}
}

func ownToken(p *corev1.Pod) {
	p.Spec.Volumes = []corev1.Volume{{Name: "mine", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t", Audience: inject.DefaultAudience}}}}}}}
}

func TestWarnings(t *testing.T) {
	postStart := config()
	postStart.PostStart = true
	job := func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever }
	for _, c := range []struct {
		name   string
		pod    *corev1.Pod
		config inject.Config
		want   []string
	}{
		{"nothing", injected(), config(), nil},
		{"nothing, without the proxy", labelled(), config(), nil},
		{"false", labelled(annotate(inject.InjectProxyAnnotation, "false")), config(),
			[]string{"annotation azure.workload.identity/inject-proxy-sidecar is false: azure-workload-identity v1.6.0 injects even so; remove it where its webhook runs"}},
		{"a mode without the proxy", labelled(annotate(inject.RedirectAnnotation, "sealed")), config(),
			[]string{`annotation imds-oidc-proxy/redirect has no effect without azure.workload.identity/inject-proxy-sidecar: "true"`}},
		{"nobody to skip", injected(annotate(inject.SkipContainersAnnotation, "ap; app")), config(),
			[]string{`annotation azure.workload.identity/skip-containers: the pod has no container "ap"`}},
		{"ours skipped", labelled(annotate(inject.SkipContainersAnnotation, "azwi-proxy-init; azwi-proxy")), config(), nil},
		{"none", injected(annotate(inject.RedirectAnnotation, "none"), privileged), config(),
			[]string{"imds-oidc-proxy/redirect: none: tokens go to the clients that heed AZURE_POD_IDENTITY_AUTHORITY_HOST only, and nothing keeps the pod from the node's IMDS"}},
		{"privileged", injected(privileged), config(), []string{`container "app" is privileged or has NET_ADMIN: it can take the redirect away`}},
		{"NET_ADMIN", injected(netAdmin), config(), []string{`container "app" is privileged or has NET_ADMIN: it can take the redirect away`}},
		{"own token", labelled(ownToken, annotate(inject.TokenExpirationAnnotation, "7200")), config(),
			[]string{`annotation azure.workload.identity/service-account-token-expiration has no effect: the pod already projects a token, in volume "mine"; say expirationSeconds there`}},
		{"own token, nothing said", labelled(ownToken), config(), nil},
		{"old style", injected(initNamed("migrate")), postStart,
			[]string{"init containers get no tokens: on this server the proxy starts after them"}},
		{"old style in a Job", injected(job), postStart,
			[]string{"spec.restartPolicy Never: the pod will not complete by itself, as on this server the proxy runs on"}},
		{"native in a Job", injected(job), config(), nil},
	} {
		result, err := inject.Pod(c.pod, account(), c.config)
		if err != nil || !slices.Equal(result.Warnings, c.want) {
			t.Errorf("%s: %v, warnings\n%s, want\n%s", c.name, err, strings.Join(result.Warnings, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

func TestWarningsOfAccounts(t *testing.T) {
	c := config()
	c.TenantID = ""
	result, err := inject.Pod(labelled(), nil, c)
	want := []string{
		"the pod's service account has no annotation azure.workload.identity/client-id: a request that names no identity gets no token",
		"the pod's service account has no annotation azure.workload.identity/tenant-id, and the configuration no tenant: AZURE_TENANT_ID is not set",
	}
	if err != nil || !slices.Equal(result.Warnings, want) {
		t.Errorf("%v, %q, want %q", err, result.Warnings, want)
	}
}
