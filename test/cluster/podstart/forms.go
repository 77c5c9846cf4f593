package main

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/azwi"
)

// form is a kind of pod. The first one is the plain pod, with which the others are compared.
type form struct {
	name string
	make func(b *bench, pod *corev1.Pod) (*corev1.Pod, error)
	goal goal
}

// goal is that the first token is at most this much later than that of another form. The zero
// value means no goal.
type goal struct {
	form string
	more time.Duration
}

const (
	plainForm = "plain pod"
	azwiForm  = "azure-workload-identity's form"
)

var forms = []form{
	{plainForm, func(_ *bench, pod *corev1.Pod) (*corev1.Pod, error) { return pod, nil }, goal{}},
	{"default: native sidecar", injected(inject.Config{}), goal{form: azwiForm}},
	{azwiForm, injectedByAzwi, goal{}},
	{"cni-forward", injected(inject.Config{}, annotate(inject.RedirectAnnotation, "cni-forward")), goal{plainForm, 1600 * time.Millisecond}},
	{"cni-forward, no validator", injected(inject.Config{}, annotate(inject.RedirectAnnotation, "cni-forward"), annotate(inject.CNIValidatorAnnotation, "false")), goal{plainForm, 600 * time.Millisecond}},
	{"redirect: none", injected(inject.Config{}, annotate(inject.RedirectAnnotation, "none")), goal{}},
	{"no native sidecar (Kubernetes before 1.29)", injected(inject.Config{PostStart: true}), goal{}},
	{"default, startup probe in place of the hook", withStartupProbe, goal{}},
}

func annotate(name, value string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { metav1.SetMetaDataAnnotation(&pod.ObjectMeta, name, value) }
}

// injected returns the form of a pod that this project injects.
func injected(c inject.Config, edits ...func(*corev1.Pod)) func(*bench, *corev1.Pod) (*corev1.Pod, error) {
	return func(b *bench, pod *corev1.Pod) (*corev1.Pod, error) {
		request(pod)
		for _, edit := range edits {
			edit(pod)
		}
		return b.cluster.Inject(pod, b.account, c)
	}
}

// request makes the pod ask for injection, and its application for a token.
func request(pod *corev1.Pod) {
	metav1.SetMetaDataLabel(&pod.ObjectMeta, inject.UseLabel, "true")
	annotate(inject.InjectProxyAnnotation, "true")(pod)
	pod.Spec.Containers[0].Args = []string{"token"}
}

// injectedByAzwi returns the form that azure-workload-identity v1.6.0 makes: its containers, their
// order and hook, and the commands of its init container. The proxy is this project's, which is a
// drop-in replacement: it can exchange tokens here, and starts faster than the original.
func injectedByAzwi(b *bench, pod *corev1.Pod) (*corev1.Pod, error) {
	request(pod)
	pod, err := azwi.Webhook{Layout: azwi.V160, NativeSidecar: true, TenantID: b.cluster.Entra.TenantID()}.Mutate(pod, b.account)
	if err != nil {
		return nil, err
	}
	images := map[string]string{azwi.ProxyImage: cluster.ProxyImage, azwi.ProxyInitImage: azwiInitImage}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if image, ok := images[list[i].Image]; ok {
				list[i].Image = image
			}
			for j := range list[i].Env {
				if e := &list[i].Env[j]; e.Name == azure.EnvAuthorityHost {
					e.Value = b.cluster.Entra.AuthorityHost()
				}
			}
		}
	}
	return pod, nil
}

// withStartupProbe returns the default form as it was before ADR 0051.
func withStartupProbe(b *bench, pod *corev1.Pod) (*corev1.Pod, error) {
	pod, err := injected(inject.Config{})(b, pod)
	if err != nil {
		return nil, err
	}
	for i := range pod.Spec.InitContainers {
		if proxy := &pod.Spec.InitContainers[i]; proxy.Name == inject.ProxyName {
			proxy.StartupProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: proxy.Lifecycle.PostStart.Exec},
				TimeoutSeconds: 25, PeriodSeconds: 1, FailureThreshold: 6}
			proxy.Lifecycle = nil
			return pod, nil
		}
	}
	return nil, fmt.Errorf("the pod has no init container %s", inject.ProxyName)
}
