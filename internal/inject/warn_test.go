package inject_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/azwi"
)

func privileged(p *corev1.Pod) {
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
}

func netAdmin(p *corev1.Pod) {
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"CAP_NET_ADMIN"}}}
}

func ownToken(p *corev1.Pod) {
	p.Spec.Volumes = []corev1.Volume{{Name: "mine", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t", Audience: azure.Audience}}}}}}}
}

// vaultToken is one of another audience.
func vaultToken(p *corev1.Pod) {
	ownToken(p)
	p.Spec.Volumes[0].Projected.Sources[0].ServiceAccountToken.Audience = "vault.example.test"
}

func tokenMode(mode int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Volumes[0].Projected.DefaultMode = &mode }
}

func fsGroup(p *corev1.Pod) {
	if p.Spec.SecurityContext == nil {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	p.Spec.SecurityContext.FSGroup = new(int64)
}

func rootsGroup(p *corev1.Pod) {
	p.Spec.SecurityContext = &corev1.PodSecurityContext{SupplementalGroups: []int64{0}}
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
		{"own token, for all", injected(ownToken, tokenMode(0o644)), config(), nil},
		{"own token, for a group", injected(ownToken, tokenMode(0o440), fsGroup), config(), nil},
		{"own token, for root, without the proxy", labelled(ownToken, tokenMode(0o400), podRunsAs(1000)), config(), nil},
		{"another token, of one user", injected(vaultToken, tokenMode(0o400), podRunsAs(1000)), config(),
			[]string{`volume "mine": with the proxy's user in the pod, its defaultMode 0400 keeps the application from the token; write 0444, or a spec.securityContext.fsGroup`}},
		{"another token, for a group", injected(vaultToken, tokenMode(0o400), podRunsAs(1000), fsGroup), config(), nil},
		{"another token, for root", injected(vaultToken, tokenMode(0o400), podRunsAs(0)), config(), nil},
		{"another token, of two users", injected(vaultToken, tokenMode(0o400), podRunsAs(1000), initNamed("other"), func(p *corev1.Pod) {
			p.Spec.InitContainers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(1001))}
		}), config(), nil},
		{"own token, of root's group", injected(ownToken, tokenMode(0o440), rootsGroup), config(), nil},
		{"own token, all as the proxy", injected(ownToken, tokenMode(0o400), podRunsAs(1501), annotate(inject.RedirectAnnotation, "none")), config(),
			[]string{"imds-oidc-proxy/redirect: none: tokens go to the clients that heed AZURE_POD_IDENTITY_AUTHORITY_HOST only, and nothing keeps the pod from the node's IMDS"}},
		{"own token, nothing said", labelled(ownToken), config(), nil},
		{"a port that is no port", injected(listens(0, "")), config(), nil}, // for the API server to refuse
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

// TestOutdated: what was injected before and would be otherwise now stays, and is told.
func TestOutdated(t *testing.T) {
	keeps := func(variable string) string {
		return `container "app" keeps ` + variable + `, which is not what would be injected now; remove it, or inject again after --uninject`
	}
	none := annotate(inject.RedirectAnnotation, "none")
	china := config()
	china.TenantID, china.AuthorityHost = objectID, "https://login.chinacloudapi.cn/"
	other := account()
	other.Annotations[inject.ClientIDAnnotation] = otherID
	written := func(variable, value string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, corev1.EnvVar{Name: variable, Value: value})
		}
	}
	for _, c := range []struct {
		name    string
		before  func(*corev1.Pod)
		after   func(*corev1.Pod)
		account *corev1.ServiceAccount
		config  inject.Config
		want    []string
	}{
		{"nothing", none, none, account(), config(), nil},
		{"client ID", none, none, other, config(), []string{keeps("AZURE_CLIENT_ID")}},
		{"the author's", written("AZURE_CLIENT_ID", clientID), none, other, config(), nil},
		{"tenant and cloud", none, none, account(), china, []string{keeps("AZURE_TENANT_ID"), keeps("AZURE_AUTHORITY_HOST")}},
		{"port", none, annotate(inject.ProxyPortAnnotation, "9000"), account(), config(), []string{keeps("AZURE_POD_IDENTITY_AUTHORITY_HOST")}},
		{"redirect", none, annotate(inject.RedirectAnnotation, "forward"), account(), config(), []string{keeps("AZURE_POD_IDENTITY_AUTHORITY_HOST")}},
	} {
		pod := mutate(t, injected(c.before), account(), config())
		c.after(pod)
		result, err := inject.Pod(pod, c.account, c.config)
		// That nothing redirects is a warning of its own.
		got := slices.DeleteFunc(result.Warnings, func(w string) bool { return !strings.HasPrefix(w, "container ") })
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, warnings\n%s, want\n%s", c.name, err, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

// TestNotOutdated: what azure-workload-identity's webhook wrote before ours is what ours
// would have written, but for a slash at the end, the case of a GUID and the volume that it
// is in.
func TestNotOutdated(t *testing.T) {
	mounted := func(p *corev1.Pod) {
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "mine", MountPath: "/mine"}}
	}
	for _, layout := range []azwi.Layout{azwi.V160, azwi.Older, azwi.Newer} {
		for _, pod := range []*corev1.Pod{injected(), injected(ownToken, mounted)} {
			pod, err := azwi.Webhook{Layout: layout, NativeSidecar: true, TenantID: tenantID}.Mutate(pod, account())
			if err != nil {
				t.Fatal(err)
			}
			for i, env := range pod.Spec.Containers[0].Env {
				switch env.Name {
				case azure.EnvAuthorityHost:
					pod.Spec.Containers[0].Env[i].Value = strings.TrimSuffix(env.Value, "/")
				case azure.EnvClientID:
					pod.Spec.Containers[0].Env[i].Value = strings.ToUpper(env.Value)
				}
			}
			result, err := inject.Pod(pod, account(), config())
			if err != nil || len(result.Warnings) > 0 {
				t.Errorf("layout %v: %v, warnings %q", layout, err, result.Warnings)
			}
		}
	}
}
