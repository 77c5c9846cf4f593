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

// vaultToken adds a projected token with another audience.
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

// sameWarning compares a warning with the wanted one, which may end before a list.
func sameWarning(got, want string) bool {
	return got == want || strings.HasSuffix(want, ", ") && strings.HasPrefix(got, want)
}

func sharesProcesses(p *corev1.Pod) { p.Spec.ShareProcessNamespace = new(true) }

// sets adds variables, given as names and values, to the first container.
func sets(pairs ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for pair := range slices.Chunk(pairs, 2) {
			p.Spec.Containers[0].Env = append(p.Spec.Containers[0].Env, corev1.EnvVar{Name: pair[0], Value: pair[1]})
		}
	}
}

// noneWarning returns the warning about a pod without a redirect, given the variables by which
// clients find the proxy.
func noneWarning(variables string) string {
	return "annotation imds-oidc-proxy/redirect is none: only clients that use " + variables + " get tokens from the proxy, and the pod can reach the node's IMDS; deny egress to 169.254.169.254 by a NetworkPolicy, such as that of deploy/no-redirect"
}

const allVariables = "AZURE_POD_IDENTITY_AUTHORITY_HOST, IDENTITY_ENDPOINT or MSI_ENDPOINT"

// keptWarning returns the warning about a variable of App Service that the author has set.
func keptWarning(name string) string {
	return `container "app" sets ` + name + ` and keeps it: it gets none of IDENTITY_ENDPOINT, IDENTITY_HEADER, MSI_ENDPOINT, MSI_SECRET for the proxy; remove the variable, or set annotation imds-oidc-proxy/app-service: "false"`
}

func httpProxyWarning(address string) string {
	return `container "app" sets HTTP_PROXY, and its NO_PROXY does not contain ` + address + `: many clients send token requests to that proxy; add the address to NO_PROXY`
}

// TestInvalidWithoutProxy checks that invalid values of the proxy's annotations do not refuse a
// pod that gets no proxy: each is a warning.
func TestInvalidWithoutProxy(t *testing.T) {
	count := 0
	for _, a := range inject.Annotations() {
		if !strings.HasPrefix(a.Name, "imds-oidc-proxy/") && a.Name != inject.ProxyPortAnnotation || a.Name == inject.AddedAnnotation {
			continue
		}
		count++
		result, err := inject.Pod(labelled(annotate(a.Name, "\x00\n")), account(), config())
		want := `annotation ` + a.Name + ` has no effect without azure.workload.identity/inject-proxy-sidecar: "true"`
		if err != nil || !slices.Equal(result.Warnings, []string{want}) {
			t.Errorf("%s: %v, %q, want %q", a.Name, err, result.Warnings, want)
		}
		if _, err := inject.Pod(injected(annotate(a.Name, "\x00\n")), account(), config()); err == nil {
			t.Errorf("%s: not refused with the proxy", a.Name)
		}
	}
	if count < 11 {
		t.Errorf("tested %d annotations, want all of the proxy's", count)
	}
}

func TestWarnings(t *testing.T) {
	postStart := config()
	postStart.PostStart = true
	none := config()
	none.Redirect = "none"
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
			[]string{"annotation azure.workload.identity/inject-proxy-sidecar is \"false\": azure-workload-identity v1.6.0 injects its proxy nevertheless; remove the annotation if its webhook is in the cluster"}},
		{"an injected request without the proxy", labelled(annotate("imds-oidc-proxy/cni-redirect", "x")), config(), nil},
		{"a mode without the proxy", labelled(annotate(inject.RedirectAnnotation, "sealed")), config(),
			[]string{`annotation imds-oidc-proxy/redirect has no effect without azure.workload.identity/inject-proxy-sidecar: "true"`}},
		{"unknown container to skip", injected(annotate(inject.SkipContainersAnnotation, "ap; app")), config(),
			[]string{`annotation azure.workload.identity/skip-containers: the pod has no container "ap"`}},
		{"ours skipped", labelled(annotate(inject.SkipContainersAnnotation, "azwi-proxy-init; azwi-proxy")), config(), nil},
		{"none", injected(annotate(inject.RedirectAnnotation, "none"), privileged), config(),
			[]string{noneWarning(allVariables)}},
		{"none by configuration", injected(), none,
			[]string{strings.Replace(noneWarning(allVariables), "annotation imds-oidc-proxy/redirect", "the configured redirect", 1)}},
		{"privileged, CNI", injected(privileged, annotate(inject.RedirectAnnotation, "cni-forward")), config(), []string{`container "app" is privileged or has NET_ADMIN: it can remove the redirect`}},
		{"privileged", injected(privileged), config(), []string{`container "app" is privileged or has NET_ADMIN: it can remove the redirect`}},
		{"NET_ADMIN", injected(netAdmin), config(), []string{`container "app" is privileged or has NET_ADMIN: it can remove the redirect`}},
		{"own token", labelled(ownToken, annotate(inject.TokenExpirationAnnotation, "7200")), config(),
			[]string{`annotation azure.workload.identity/service-account-token-expiration has no effect: volume "mine" of the pod already has a projected token; set expirationSeconds there`}},
		{"own token, for all", injected(ownToken, tokenMode(0o644)), config(), nil},
		{"own token, for a group", injected(ownToken, tokenMode(0o440), fsGroup), config(), nil},
		{"own token, for root, without the proxy", labelled(ownToken, tokenMode(0o400), podRunsAs(1000)), config(), nil},
		{"another token, of one user", injected(vaultToken, tokenMode(0o400), podRunsAs(1000)), config(),
			[]string{`volume "mine": with the proxy in the pod, the application cannot read the token, because of the defaultMode 0400; set it to 0444, or set spec.securityContext.fsGroup`}},
		{"another token, for a group", injected(vaultToken, tokenMode(0o400), podRunsAs(1000), fsGroup), config(), nil},
		{"another token, for root", injected(vaultToken, tokenMode(0o400), podRunsAs(0)), config(), nil},
		{"another token, of two users", injected(vaultToken, tokenMode(0o400), podRunsAs(1000), initNamed("other"), func(p *corev1.Pod) {
			p.Spec.InitContainers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(1001))}
		}), config(), nil},
		{"own token, of root's group", injected(ownToken, tokenMode(0o440), rootsGroup), config(), nil},
		{"own token, all as the proxy", injected(ownToken, tokenMode(0o400), podRunsAs(1501), annotate(inject.RedirectAnnotation, "none")), config(),
			[]string{noneWarning(allVariables)}},
		{"own token, nothing said", labelled(ownToken), config(), nil},
		{"an invalid port", injected(listens(0, "")), config(), nil}, // the API server refuses it
		{"an HTTP proxy", injected(sets("HTTP_PROXY", "http://proxy.example.test:3128", "NO_PROXY", "10.0.0.0/8,.svc")), config(), []string{httpProxyWarning("169.254.169.254")}},
		{"a lower-case HTTP proxy", injected(sets("http_proxy", "http://proxy.example.test:3128")), config(), []string{httpProxyWarning("169.254.169.254")}},
		{"a proxy for everything", injected(sets("ALL_PROXY", "socks5://proxy.example.test:1080")), config(), []string{httpProxyWarning("169.254.169.254")}},
		{"an HTTP proxy, another container's exception", injected(sets("HTTP_PROXY", "http://proxy.example.test:3128"), initNamed("migrate"), func(p *corev1.Pod) {
			p.Spec.InitContainers[0].Env = []corev1.EnvVar{{Name: "NO_PROXY", Value: "169.254.169.254"}}
		}), config(), []string{httpProxyWarning("169.254.169.254")}},
		{"an HTTP proxy, with an exception", injected(sets("HTTP_PROXY", "http://proxy.example.test:3128", "no_proxy", "a, 169.254.169.254")), config(), nil},
		{"an HTTP proxy, with an exception of a block", injected(sets("HTTP_PROXY", "http://proxy.example.test:3128", "NO_PROXY", "169.254.0.0/16")), config(), nil},
		{"an HTTP proxy, with an exception of everything", injected(sets("HTTP_PROXY", "http://proxy.example.test:3128", "NO_PROXY", "*")), config(), nil},
		{"an HTTP proxy, with an unknown exception", injected(sets("HTTP_PROXY", "http://proxy.example.test:3128", "NO_PROXY", "$(NONE)")), config(), nil},
		{"an HTTPS proxy", injected(sets("HTTPS_PROXY", "http://proxy.example.test:3128")), config(), nil},
		{"an empty HTTP proxy", injected(sets("HTTP_PROXY", "")), config(), nil},
		{"an HTTP proxy, without the proxy", labelled(sets("HTTP_PROXY", "http://proxy.example.test:3128")), config(), nil},
		{"an HTTP proxy, without a redirect", injected(annotate(inject.RedirectAnnotation, "none"), sets("HTTP_PROXY", "http://proxy.example.test:3128", "NO_PROXY", "169.254.169.254")), config(),
			[]string{httpProxyWarning("127.0.0.1"), noneWarning(allVariables)}},
		{"none, without App Service", injected(annotate(inject.RedirectAnnotation, "none"), annotate(inject.AppServiceAnnotation, "false")), config(),
			[]string{noneWarning("AZURE_POD_IDENTITY_AUTHORITY_HOST")}},
		{"an HTTP proxy, with a redirect and App Service", injected(annotate(inject.AppServiceAnnotation, "true"), sets("HTTP_PROXY", "http://proxy.example.test:3128", "NO_PROXY", "169.254.169.254")), config(),
			[]string{httpProxyWarning("127.0.0.1")}},
		{"an HTTP proxy, with a redirect and App Service, without exceptions", injected(annotate(inject.AppServiceAnnotation, "true"), sets("HTTP_PROXY", "http://proxy.example.test:3128")), config(),
			[]string{httpProxyWarning("169.254.169.254"), httpProxyWarning("127.0.0.1")}},
		{"own endpoint of App Service", injected(annotate(inject.AppServiceAnnotation, "true"), sets("MSI_ENDPOINT", "http://127.0.0.1:42")), config(),
			[]string{keptWarning("MSI_ENDPOINT")}},
		{"own secret of App Service", injected(annotate(inject.AppServiceAnnotation, "true"), sets("IDENTITY_HEADER", "x")), config(),
			[]string{keptWarning("IDENTITY_HEADER")}},
		{"own endpoint of App Service, without a redirect", injected(annotate(inject.RedirectAnnotation, "none"), sets("IDENTITY_ENDPOINT", "http://127.0.0.1:42")), config(),
			[]string{keptWarning("IDENTITY_ENDPOINT"), noneWarning(allVariables)}},
		{"own endpoint of App Service, in a skipped container", injected(annotate(inject.AppServiceAnnotation, "true"), annotate(inject.SkipContainersAnnotation, "app"), sets("MSI_ENDPOINT", "http://127.0.0.1:42")), config(), nil},
		{"own secret of App Service, which is off", injected(sets("IDENTITY_HEADER", "x")), config(), nil},
		{"App Service without the proxy", labelled(annotate(inject.AppServiceAnnotation, "true")), config(),
			[]string{`annotation imds-oidc-proxy/app-service has no effect without azure.workload.identity/inject-proxy-sidecar: "true"`}},
		{"App Service's endpoint", injected(sets("IDENTITY_ENDPOINT", "http://127.0.0.1:42", "MSI_ENDPOINT", "http://127.0.0.1:42")), config(),
			[]string{`container "app" sets IDENTITY_ENDPOINT: SDKs then request tokens at that endpoint and not from the proxy; remove the variable`}},
		{"App Service's older endpoint", injected(sets("MSI_ENDPOINT", "http://127.0.0.1:42")), config(),
			[]string{`container "app" sets MSI_ENDPOINT: SDKs then request tokens at that endpoint and not from the proxy; remove the variable`}},
		{"App Service's endpoint, without the proxy", labelled(sets("MSI_ENDPOINT", "http://127.0.0.1:42")), config(), nil},
		{"shared processes of the proxy's user", injected(runAs(1501), sharesProcesses, annotate(inject.RedirectAnnotation, "sealed")), config(),
			[]string{`spec.containers[app].securityContext.runAsUser: 1501 is the proxy's user, and with spec.shareProcessNamespace container "app" can read the proxy's memory; use another user`}},
		{"shared processes of another user", injected(runAs(1000), sharesProcesses), config(), nil},
		{"the proxy's user, processes not shared", injected(runAs(1501), annotate(inject.RedirectAnnotation, "sealed")), config(), nil},
		{"aad-pod-identity's label", labelled(func(p *corev1.Pod) { p.Labels["aadpodidbinding"] = "cart" }), config(),
			[]string{"label aadpodidbinding is of aad-pod-identity and has no effect here: annotation azure.workload.identity/client-id of the service account names the identity; remove the label when aad-pod-identity no longer serves the pod"}},
		{"an unknown annotation without the proxy", labelled(annotate("imds-oidc-proxy/redirects", "sealed")), config(),
			[]string{"annotation imds-oidc-proxy/redirects has no effect: did you mean imds-oidc-proxy/redirect?"}},
		{"an invalid port without the proxy", labelled(annotate(inject.ProxyPortAnnotation, "junk")), config(),
			[]string{`annotation azure.workload.identity/proxy-sidecar-port has no effect without azure.workload.identity/inject-proxy-sidecar: "true"`}},
		{"postStart", injected(initNamed("migrate")), postStart,
			[]string{"init containers get no tokens: the proxy is not a native sidecar, so it starts after them"}},
		{"postStart in a Job", injected(job), postStart,
			[]string{"spec.restartPolicy Never: the pod does not complete by itself, since the proxy is not a native sidecar and keeps running"}},
		{"native in a Job", injected(job), config(), nil},
	} {
		result, err := inject.Pod(c.pod, account(), c.config)
		if err != nil || !slices.EqualFunc(result.Warnings, c.want, sameWarning) {
			t.Errorf("%s: %v, warnings\n%s, want\n%s", c.name, err, strings.Join(result.Warnings, "\n"), strings.Join(c.want, "\n"))
		}
	}
}

func TestWarningsOfAccounts(t *testing.T) {
	c := config()
	c.TenantID = ""
	result, err := inject.Pod(labelled(), nil, c)
	want := []string{
		"the pod's service account has no annotation azure.workload.identity/client-id: requests without a client ID get no token",
		"the pod's service account has no annotation azure.workload.identity/tenant-id, and the configuration has no tenant: AZURE_TENANT_ID is not set",
	}
	if err != nil || !slices.Equal(result.Warnings, want) {
		t.Errorf("%v, %q, want %q", err, result.Warnings, want)
	}
}

// TestOutdated checks that variables that the author has changed after injection are not changed
// back, also if the values that would be injected change, and that there is a warning.
func TestOutdated(t *testing.T) {
	keeps := func(variable string) string {
		return `container "app" keeps its ` + variable + `, which differs from the value that would be injected now; remove the variable, or run imds-migrate uninject before you inject again`
	}
	other := account()
	other.Annotations[inject.ClientIDAnnotation] = otherID
	recording := config()
	recording.RecordValues = true
	withProxy := annotate(inject.InjectProxyAnnotation, "true")
	none := func(p *corev1.Pod) { withProxy(p); annotate(inject.RedirectAnnotation, "none")(p) }
	nothing := func(*corev1.Pod) {}
	for _, c := range []struct {
		name     string
		before   func(*corev1.Pod)
		config   inject.Config
		variable string
		value    string
		account  *corev1.ServiceAccount
		want     []string
	}{
		{"nothing", none, config(), "", "", account(), nil},
		{"client ID", withProxy, config(), "AZURE_CLIENT_ID", objectID, account(), []string{keeps("AZURE_CLIENT_ID")}},
		{"client ID, another account", withProxy, config(), "AZURE_CLIENT_ID", objectID, other, []string{keeps("AZURE_CLIENT_ID")}},
		{"client ID, without the proxy", nothing, recording, "AZURE_CLIENT_ID", objectID, other, []string{keeps("AZURE_CLIENT_ID")}},
		{"unknown, without the proxy", nothing, config(), "", "", other, []string{keeps("AZURE_CLIENT_ID")}},
		{"the author's", sets("AZURE_CLIENT_ID", clientID), recording, "", "", other, nil},
		{"tenant", withProxy, config(), "AZURE_TENANT_ID", objectID, account(), []string{keeps("AZURE_TENANT_ID")}},
		{"cloud", withProxy, config(), "AZURE_AUTHORITY_HOST", "https://login.example.test/", account(), []string{keeps("AZURE_AUTHORITY_HOST")}},
		{"endpoint", none, config(), "AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:9", account(), []string{keeps("AZURE_POD_IDENTITY_AUTHORITY_HOST")}},
	} {
		pod := mutate(t, labelled(c.before), account(), c.config)
		if c.variable != "" {
			env(&pod.Spec.Containers[0], c.variable).Value = c.value
		}
		result, err := inject.Pod(pod, c.account, c.config)
		// The warning about a missing redirect is not compared.
		got := slices.DeleteFunc(result.Warnings, func(w string) bool { return !strings.HasPrefix(w, "container ") })
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, warnings\n%s, want\n%s", c.name, err, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
		want := c.value
		if c.variable != "" && value(&mutate(t, pod, c.account, c.config).Spec.Containers[0], c.variable) != want {
			t.Errorf("%s: %s is changed, want %s", c.name, c.variable, want)
		}
	}
}

// TestNotOutdated checks that there is no warning about variables of azure-workload-identity's
// webhook. They have the values that this package would inject, except for a slash at the end,
// the case of a GUID, and the volume of the token.
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
