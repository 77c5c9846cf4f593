package plan

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/signs"
	"imds-oidc-proxy/internal/survey"
)

// obstacles finds what is in the way of a workload.
func (b *builder) obstacles(w *Workload) {
	b.platform(w)
	b.owner(w)
	b.endpoints(w)
	b.cloud(w)
	if first(w.Findings, Blocked) != nil {
		return // what follows is about the sidecar, which the workload does not get
	}
	b.injection(w)
	b.nativeSidecar(w)
	b.policies.check(w)
}

const directOnly = "move it to workload identity directly: upgrade the SDK, docs/migration.md, step 11"

// platform finds pods that cannot have the sidecar.
func (b *builder) platform(w *Workload) {
	spec := w.source.Template.Spec
	switch {
	case spec.HostNetwork:
		w.find("IMDS120", "hostNetwork: the redirect would apply to the node and all its pods", directOnly)
	case isWindows(w.source):
		w.find("IMDS121", "Windows: the redirect and the proxy need Linux", directOnly)
	case isVirtual(spec):
		w.find("IMDS122", "virtual nodes have neither init containers nor managed identities", "run the workload on another node pool, or use a secret of an app registration")
	}
	if class := spec.RuntimeClassName; class != nil && strings.HasPrefix(*class, "kata") {
		w.find("IMDS123", "runtime class "+*class+": proxy-init takes the pod's network for a node's", "proxy-init needs --force, which injection does not set: use the manifests of deploy/, or upgrade the SDK directly")
	}
}

// isVirtual reports whether pods are for the virtual nodes of Azure Container Instances.
func isVirtual(spec corev1.PodSpec) bool {
	return spec.NodeSelector["type"] == "virtual-kubelet" || slices.ContainsFunc(spec.Tolerations, func(t corev1.Toleration) bool {
		return t.Key == "virtual-kubelet.io/provider"
	}) && (len(spec.NodeSelector) > 0 || spec.NodeName != "")
}

// owner finds workloads whose template is not where one would change it.
func (b *builder) owner(w *Workload) {
	source := w.source
	field, special := survey.TemplateFields[source.Group+"/"+source.Kind]
	switch {
	case source.Static:
		w.find("IMDS124", "the kubelet reads this pod from a file of its node, and gives it no service account", "run it as a DaemonSet")
	case source.Manager != "":
		w.find("IMDS126", source.Manager+" creates this object and restores it", "set label and service account there: see the documentation of its operator")
	case special:
		w.find("IMDS126", "a "+source.Kind+" has no ordinary pod template", "write the label into "+field.Labels+", and the service account into "+field.Account)
	case source.Foreign:
		w.find("IMDS126", fmt.Sprintf("%s %s creates the pods, and was not read", source.Kind, source.Name), "set label and service account in its pod template")
	case source.Kind == "Pod" && source.Group == "":
		w.find("IMDS125", "the pod has no controller: its fields cannot be changed", "delete it and create it again, with label and service account")
	}
}

// endpoints finds settings that send token requests elsewhere.
func (b *builder) endpoints(w *Workload) {
	for _, s := range w.evidence.signs {
		switch s.Source {
		case signs.OtherEndpoint:
			w.find("IMDS129", "variable "+s.Text+": SDKs request tokens at that endpoint, and not from IMDS", "remove the variable")
		case signs.OtherHost:
			w.find("IMDS129", "variable "+s.Text+": clients that read it request tokens there", "remove the variable; injection sets it where it is needed")
		}
	}
	if w.evidence.instance {
		w.find("IMDS148", "the pods request instance metadata", "do not use redirect: sealed")
	}
}

// cloud finds pods of another cloud.
func (b *builder) cloud(w *Workload) {
	host, err := azure.ParseAuthorityHost(w.evidence.authority)
	if w.evidence.authority == "" || err == nil && azure.PublicAuthorityHost.Serves(string(host)) {
		return
	}
	w.find("IMDS144", azure.EnvAuthorityHost+"="+w.evidence.authority+": the federated credentials have the audience "+b.options.Audience, "set --audience if this cloud wants another one")
}

// placeholder is a configuration with which injection is tried.
var placeholder = inject.Config{ProxyImage: "registry.example.test/proxy", ProxyInitImage: "registry.example.test/proxy-init", TenantID: "00000000-0000-0000-0000-000000000000"}

// injection tries to inject the sidecar, with the code of the webhook.
func (b *builder) injection(w *Workload) {
	template := w.source.Template.DeepCopy()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Labels: template.Labels, Annotations: template.Annotations}, Spec: template.Spec}
	metav1.SetMetaDataLabel(&pod.ObjectMeta, inject.UseLabel, "true")
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, inject.InjectProxyAnnotation, "true")
	result, err := inject.Pod(pod, nil, placeholder)
	if err != nil {
		w.find("IMDS127", err.Error(), "docs/injection.md")
		return
	}
	w.sidecar = sidecarResources(result.Patch)
	for _, warning := range result.Warnings {
		if strings.Contains(warning, "HTTP_PROXY") {
			w.find("IMDS147", warning, "")
		}
	}
}

// sidecarResources returns the resources that the proxy would have, or nil if the patch does not change it.
func sidecarResources(patch []inject.Operation) *corev1.ResourceRequirements {
	for _, operation := range patch {
		var containers []corev1.Container
		switch value := operation.Value.(type) {
		case corev1.Container:
			containers = []corev1.Container{value}
		case []corev1.Container:
			containers = value
		}
		for i := range containers {
			if containers[i].Name == inject.ProxyName {
				resources := containers[i].Resources // a copy, so that the rest of the patch is not kept
				return &resources
			}
		}
	}
	return nil
}

// firstNative is the first version of Kubernetes with native sidecars by default.
const firstNative = "1.29"

func (b *builder) nativeSidecar(w *Workload) {
	served, err := version.ParseGeneric(b.plan.Cluster.ServerVersion)
	if err != nil || served.AtLeast(version.MustParseGeneric(firstNative)) {
		return
	}
	fix := "set --native-sidecar=off"
	if slices.Contains([]string{"Job", "CronJob"}, w.Kind) {
		fix = "upgrade the SDK directly: with a proxy that is not a native sidecar, the Job does not complete"
	}
	w.find("IMDS128", "Kubernetes "+b.plan.Cluster.ServerVersion+" has no native sidecars", fix)
}
