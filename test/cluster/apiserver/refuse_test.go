package apiserver

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"imds-oidc-proxy/internal/inject"
)

// TestRefusals checks the API server's response when the webhook refuses a pod.
// internal/inject tests that each invalid value is refused.
func TestRefusals(t *testing.T) {
	asProxy := int64(1501)
	for _, c := range []struct {
		name string
		pod  *corev1.Pod
		want string
	}{
		{"invalid boolean", newPod(annotate(inject.InjectProxyAnnotation, "yes please")), `inject-proxy-sidecar: "yes please": must be "true" or "false"`},
		{"port 0", injected(annotate(inject.ProxyPortAnnotation, "0")), `proxy-sidecar-port: "0": must be between 1 and 65535`},
		{"port 65536", injected(annotate(inject.ProxyPortAnnotation, "65536")), `proxy-sidecar-port: "65536": must be between 1 and 65535`},
		{"port of another container", injected(func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8000}}
		}), `container "app" listens on port 8000; use a port that no container declares`},
		{"hostNetwork", injected(func(p *corev1.Pod) { p.Spec.HostNetwork = true }), `spec.hostNetwork: true: the redirect would apply to the node and all its pods`},
		{"proxy's user in a container", injected(func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: &asProxy}
		}), `1501 is the proxy's user, which the redirect does not keep from the node's IMDS`},
		{"proxy's user in the pod", injected(func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &asProxy}
		}), `spec.securityContext.runAsUser: 1501 is the proxy's user`},
		{"expiration too short", newPod(annotate(inject.TokenExpirationAnnotation, "3599")), `"3599": must be between 3600 and 86400 seconds`},
		{"expiration too long", newPod(annotate(inject.TokenExpirationAnnotation, "86401")), `"86401": must be between 3600 and 86400 seconds`},
		{"invalid redirect mode", injected(annotate(inject.RedirectAnnotation, "seal")), `"seal": must be forward, sealed, none, cni-forward or cni-sealed`},
		{"invalid resources", injected(annotate(inject.ProxyResourcesAnnotation, "128Mi")), `"128Mi": must be JSON with requests and limits`},
		{"invalid image", injected(annotate(inject.ProxyImageAnnotation, "a b")), `"a b": must be an image`},
		{"misspelled annotation", injected(annotate("imds-oidc-proxy/redirects", "sealed")), `imds-oidc-proxy/redirects: unknown annotation`},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			_, _, err := create(ctx, t, appNamespace(ctx, t), c.pod)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want a refusal that contains %s", err, c.want)
			}
			if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
				t.Errorf("%v has the reason %s, want Forbidden, Invalid or BadRequest", err, apierrors.ReasonForError(err))
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the refusal has more than one line: %q", err)
			}
		})
	}
}

// TestServiceAccounts checks the annotations of the pod's service account.
func TestServiceAccounts(t *testing.T) {
	const otherTenant = "99999999-2222-4333-8444-555555555555"
	for _, c := range []struct {
		name        string
		annotations []string
		edits       []edit
		warning     string
		refusal     string
		check       func(*testing.T, *corev1.Pod)
	}{
		{"no client ID", nil, nil, "client-id", "", func(t *testing.T, p *corev1.Pod) {
			checkEnv(t, container(t, p, "app"), "AZURE_CLIENT_ID", "AZURE_TENANT_ID="+tenantID)
		}},
		{"another tenant", []string{inject.ClientIDAnnotation, clientID, inject.TenantIDAnnotation, otherTenant}, nil, "", "", func(t *testing.T, p *corev1.Pod) {
			checkEnv(t, container(t, p, "app"), "AZURE_CLIENT_ID="+clientID, "AZURE_TENANT_ID="+otherTenant)
		}},
		{"expiration", []string{inject.ClientIDAnnotation, clientID, inject.TokenExpirationAnnotation, "7200"}, nil, "", "", func(t *testing.T, p *corev1.Pod) {
			if got := *checkToken(t, p, "app").ExpirationSeconds; got != 7200 {
				t.Errorf("the token's lifetime is %d seconds, want 7200", got)
			}
		}},
		{"expiration overridden by the pod", []string{inject.ClientIDAnnotation, clientID, inject.TokenExpirationAnnotation, "7200"},
			[]edit{annotate(inject.TokenExpirationAnnotation, "4000")}, "", "", func(t *testing.T, p *corev1.Pod) {
				if got := *checkToken(t, p, "app").ExpirationSeconds; got != 4000 {
					t.Errorf("the token's lifetime is %d seconds, want 4000", got)
				}
			}},
		{"invalid expiration", []string{inject.ClientIDAnnotation, clientID, inject.TokenExpirationAnnotation, "1h"}, nil, "", `"1h": must be between 3600 and 86400 seconds`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
			defer cancel()
			// The webhook's cache may not yet have the new service account.
			namespace := newNamespace(ctx, t, privileged)
			makeAccount(ctx, t, namespace, "new", c.annotations...)
			pod := newPod(append(c.edits, podOfAccount("new"))...)
			if c.refusal == "" {
				c.check(t, mustCreate(ctx, t, namespace, pod, c.warning))
			} else if _, _, err := create(ctx, t, namespace, pod); err == nil || !strings.Contains(err.Error(), c.refusal) {
				t.Errorf("%v, want a refusal that contains %s", err, c.refusal)
			}
		})
	}
}

// TestPodSecurityOfInjected checks that Pod Security admission applies to the pod after
// injection. Levels baseline and restricted refuse NET_ADMIN, which the redirect requires.
// Without a redirect the pod is admitted.
func TestPodSecurityOfInjected(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	namespace := appNamespace(ctx, t, podSecurityEnforce, restricted)
	mustCreate(ctx, t, namespace, injected(restrict, annotate(inject.RedirectAnnotation, "none")), "AZURE_POD_IDENTITY_AUTHORITY_HOST")

	for _, level := range []string{baseline, restricted} {
		_, _, err := create(ctx, t, appNamespace(ctx, t, podSecurityEnforce, level), injected(restrict))
		if err == nil || !strings.Contains(err.Error(), `"azwi-proxy-init"`) || !strings.Contains(err.Error(), "NET_ADMIN") {
			t.Errorf("level %s: %v, want a refusal of NET_ADMIN for azwi-proxy-init", level, err)
		}
	}
}

// restrict makes the pod comply with the Pod Security level restricted.
func restrict(p *corev1.Pod) {
	yes, no, user := true, false, int64(1000)
	p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			list[i].SecurityContext = &corev1.SecurityContext{AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
		}
	}
}
