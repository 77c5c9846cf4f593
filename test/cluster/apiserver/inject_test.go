package apiserver

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
)

// injections are pods that are admitted, with checks of the result.
var injections = []struct {
	name string
	pod  *corev1.Pod
	// warning is part of the only warning. If it is empty, there must be no warning.
	warning string
	check   func(*testing.T, *corev1.Pod)
}{
	{"redirect and sidecar", injected(), "", func(t *testing.T, p *corev1.Pod) {
		checkInjected(t, p)
		for _, name := range []string{"app", "migrate"} {
			checkEnv(t, container(t, p, name), "AZURE_CLIENT_ID="+clientID, "AZURE_TENANT_ID="+tenantID,
				"AZURE_AUTHORITY_HOST=https://login.microsoftonline.com/")
			if got := *checkToken(t, p, name).ExpirationSeconds; got != 3600 {
				t.Errorf("the token's lifetime is %d seconds, want 3600", got)
			}
		}
		checkHardened(t, p)
	}},
	{"environment only", newPod(), "", checkEnvironmentOnly},
	{"inject-proxy-sidecar false", newPod(annotate(inject.InjectProxyAnnotation, "false")), "azure-workload-identity v1.6.0 injects its proxy nevertheless", checkEnvironmentOnly},
	{"no label", injected(func(p *corev1.Pod) { delete(p.Labels, inject.UseLabel) }), "", checkUnchanged},
	{"label with the value True", injected(func(p *corev1.Pod) { p.Labels[inject.UseLabel] = "True" }), "", checkUnchanged},
	{"another port", injected(annotate(inject.ProxyPortAnnotation, "18000")), "", func(t *testing.T, p *corev1.Pod) {
		checkInjected(t, p)
		checkEnv(t, container(t, p, inject.ProxyName), "PROXY_PORT=18000")
		checkEnv(t, container(t, p, inject.ProxyInitName), "PROXY_PORT=18000")
	}},
	{"token expiration", newPod(annotate(inject.TokenExpirationAnnotation, "86400")), "", func(t *testing.T, p *corev1.Pod) {
		if got := *checkToken(t, p, "app").ExpirationSeconds; got != 86400 {
			t.Errorf("the token's lifetime is %d seconds, want 86400", got)
		}
	}},
	{"skipped containers", newPod(annotate(inject.SkipContainersAnnotation, " migrate ; other")), `no container "other"`, func(t *testing.T, p *corev1.Pod) {
		checkNoToken(t, p, "migrate")
		checkToken(t, p, "app")
	}},
	{"existing variables", newPod(func(p *corev1.Pod) {
		p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "AZURE_CLIENT_ID", Value: "mine"}, {Name: "AZURE_AUTHORITY_HOST", Value: ""}}
	}), "", func(t *testing.T, p *corev1.Pod) {
		checkEnv(t, container(t, p, "app"), "AZURE_CLIENT_ID=mine", "AZURE_AUTHORITY_HOST=", "AZURE_TENANT_ID="+tenantID)
	}},
	{"sealed, as the proxy's user", injected(annotate(inject.RedirectAnnotation, "sealed"), func(p *corev1.Pod) {
		user := int64(1501)
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: &user}
	}), "", func(t *testing.T, p *corev1.Pod) {
		checkInjected(t, p)
		checkEnv(t, container(t, p, inject.ProxyInitName), "PROXY_SEAL=true", "PROXY_DENY=168.63.129.16:80,168.63.129.16:32526")
		checkEnv(t, container(t, p, inject.ProxyName), "PROXY_IMDS_PASSTHROUGH=off")
	}},
	{"no redirect", injected(annotate(inject.RedirectAnnotation, "none")), "only clients that use AZURE_POD_IDENTITY_AUTHORITY_HOST, IDENTITY_ENDPOINT or MSI_ENDPOINT get tokens", func(t *testing.T, p *corev1.Pod) {
		if got := names(p.Spec.InitContainers); got != "azwi-proxy migrate" {
			t.Errorf("init containers %s, want azwi-proxy migrate", got)
		}
		checkEnv(t, container(t, p, "app"), "AZURE_POD_IDENTITY_AUTHORITY_HOST=http://127.0.0.1:8000")
	}},
	{"pod-level resources", injected(func(p *corev1.Pod) {
		all := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("100Mi")}
		p.Spec.Resources = &corev1.ResourceRequirements{Requests: all, Limits: all}
		p.Spec.Containers[0].Resources = *p.Spec.Resources
	}), "", func(t *testing.T, p *corev1.Pod) {
		checkInjected(t, p)
		if p.Status.QOSClass != corev1.PodQOSGuaranteed {
			t.Errorf("QoS class %s, want Guaranteed", p.Status.QOSClass)
		}
	}},
	{"guaranteed", injected(func(p *corev1.Pod) {
		for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				list[i].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("100Mi")}
			}
		}
	}), "", func(t *testing.T, p *corev1.Pod) {
		checkInjected(t, p)
		if p.Status.QOSClass != corev1.PodQOSGuaranteed {
			t.Errorf("QoS class %s, want Guaranteed", p.Status.QOSClass)
		}
	}},
	{"settings of the proxy", injected(
		annotate(inject.IdentitiesAnnotation, "77777777-7777-4888-9999-aaaaaaaaaaaa="+clientID),
		annotate(inject.PrefetchAnnotation, "https://vault.azure.net"),
		annotate(inject.AllowedClientIDsAnnotation, clientID),
		annotate(inject.LogLevelAnnotation, "debug"),
		annotate(inject.AdminPortAnnotation, "8001")), "", func(t *testing.T, p *corev1.Pod) {
		checkInjected(t, p)
		checkEnv(t, container(t, p, inject.ProxyName), "PROXY_IDENTITY=77777777-7777-4888-9999-aaaaaaaaaaaa="+clientID,
			"PROXY_PREFETCH=https://vault.azure.net", "PROXY_ALLOWED_CLIENT_IDS="+clientID, "PROXY_LOG_LEVEL=debug", "PROXY_ADMIN_ADDRESS=:8001")
		if container(t, p, inject.ProxyName).LivenessProbe == nil {
			t.Error("the proxy has no liveness probe at the admin port")
		}
	}},
	{"resources", injected(annotate(inject.ProxyResourcesAnnotation, `{"limits":{"memory":"128Mi"}}`)), "", func(t *testing.T, p *corev1.Pod) {
		if got := container(t, p, inject.ProxyName).Resources.Limits.Memory().String(); got != "128Mi" {
			t.Errorf("the memory limit is %s, want 128Mi", got)
		}
	}},
	{"images", injected(annotate(inject.ProxyImageAnnotation, "registry.example.test/mine:1"), annotate(inject.ProxyInitImageAnnotation, "registry.example.test/my-init:1")), "",
		func(t *testing.T, p *corev1.Pod) {
			if got := container(t, p, inject.ProxyName).Image + " " + container(t, p, inject.ProxyInitName).Image; got != "registry.example.test/mine:1 registry.example.test/my-init:1" {
				t.Errorf("images %s", got)
			}
		}},
	{"generated name", injected(func(p *corev1.Pod) { p.Name, p.GenerateName = "", "app-" }), "", checkInjected},
}

func TestInjections(t *testing.T) {
	for _, c := range injections {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			namespace := appNamespace(ctx, t)
			pod := mustCreate(ctx, t, namespace, c.pod, c.warning)
			c.check(t, pod)
			checkRecord(t, pod)
			checkSecondPass(ctx, t, namespace, pod, c.warning)
		})
	}
}

// checkSecondPass creates a pod from one that was read back, with all defaults and changes
// of the API server's admission. The second injection must not change it.
func checkSecondPass(ctx context.Context, t *testing.T, namespace string, first *corev1.Pod, warning string) {
	t.Helper()
	again := first.DeepCopy()
	again.ResourceVersion, again.UID, again.Status = "", "", corev1.PodStatus{}
	if again.GenerateName == "" {
		if err := running.Client.CoreV1().Pods(namespace).Delete(ctx, first.Name, deleteNow); err != nil {
			t.Fatal(err)
		}
	} else {
		again.Name = ""
	}
	second := mustCreate(ctx, t, namespace, again, warning)
	if !reflect.DeepEqual(second.Spec, first.Spec) {
		t.Errorf("the pod after the second injection:\n%+v\nand after the first:\n%+v", second.Spec, first.Spec)
	}
}

// checkEnvironmentOnly checks that the pod got tokens and no containers.
func checkEnvironmentOnly(t *testing.T, p *corev1.Pod) {
	t.Helper()
	if got := names(p.Spec.InitContainers) + "; " + names(p.Spec.Containers); got != "migrate; app" {
		t.Errorf("containers %s, want migrate; app", got)
	}
	checkToken(t, p, "app")
	checkToken(t, p, "migrate")
}

// checkRecord checks that the webhook records the variables that it injects into a pod without the
// proxy, and no others. imds-migrate does not record them.
func checkRecord(t *testing.T, p *corev1.Pod) {
	t.Helper()
	record, recorded := p.Annotations["imds-oidc-proxy/injected"]
	hasProxy := strings.Contains(names(p.Spec.InitContainers)+" "+names(p.Spec.Containers), inject.ProxyName)
	hasVariables := slices.ContainsFunc(container(t, p, "app").Env, func(e corev1.EnvVar) bool { return e.Name == azure.EnvFederatedTokenFile })
	if want := hasVariables && !hasProxy; recorded != want || recorded && !strings.Contains(record, clientID) {
		t.Errorf("the record of the variables is %q (%t), want one with the client ID: %t", record, recorded, want)
	}
}

// checkUnchanged checks that no webhook changed the pod.
func checkUnchanged(t *testing.T, p *corev1.Pod) {
	t.Helper()
	if got := names(p.Spec.InitContainers) + "; " + names(p.Spec.Containers); got != "migrate; app" {
		t.Errorf("containers %s, want migrate; app", got)
	}
	if got := tokenVolumes(p); len(got) > 0 {
		t.Errorf("the pod has volumes with a token: %v", got)
	}
	for _, c := range append(p.Spec.InitContainers, p.Spec.Containers...) {
		for _, e := range c.Env {
			if strings.HasPrefix(e.Name, "AZURE_") {
				t.Errorf("container %s has the variable %s", c.Name, e.Name)
			}
		}
	}
}

// checkHardened checks the security context and the resources that both containers set,
// independently of the pod's.
func checkHardened(t *testing.T, p *corev1.Pod) {
	t.Helper()
	for name, user := range map[string]int64{inject.ProxyName: 1501, inject.ProxyInitName: 0} {
		c := container(t, p, name)
		s := c.SecurityContext
		if *s.RunAsUser != user || *s.RunAsGroup != user {
			t.Errorf("%s runs as %d:%d, want %d:%d", name, *s.RunAsUser, *s.RunAsGroup, user, user)
		}
		if s.Privileged != nil && *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem ||
			s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" {
			t.Errorf("%s has the security context %+v", name, s)
		}
		if c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() {
			t.Errorf("%s has no memory request or no memory limit: %+v", name, c.Resources)
		}
	}
}
