package survey

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/signs"
)

// pod is a pod until its owner is known.
type pod struct {
	ref      Ref
	owner    Ref // zero: none
	meta     Meta
	hash     string          // of its ReplicaSet
	spec     *corev1.PodSpec // nil if the owner's template is known
	injected Injected
	static   bool
}

// onDelete is the update strategy with which only the deletion of a pod replaces it.
const onDelete = "OnDelete"

// proxyName is the name of the proxy's container, which azure-workload-identity's webhook uses too.
const proxyName = "azwi-proxy"

// addWorkload adds an object with a pod template, unless another object with a template created it.
func (s *Survey) addWorkload(k Kind, h *header, text []byte) error {
	if parent, found := h.controller(); found {
		if p, known := kindOf(parent.Group, parent.Kind); known && p.Template != "" {
			s.parents[h.ref()] = parent
			return nil
		}
	}
	w := &Workload{Ref: h.ref(), Version: versionOf(h.APIVersion), Meta: h.Metadata.Meta, Path: k.Template}
	if manager, found := h.controller(); found {
		w.Manager = manager.Kind + "/" + manager.Name
	}
	if err := decodeTemplate(text, k.Template, &w.Template); err != nil {
		return err
	}
	if len(w.Template.Spec.Containers) == 0 {
		return fmt.Errorf("%s.spec.containers is required", k.Template)
	}
	trim(&w.Template.Spec)
	if spec, err := field(text, []string{"spec"}); err == nil {
		w.Selector = valueAt[map[string]string](spec, "selector.matchLabels")
		switch {
		case valueAt[string](spec, "updateStrategy.type") == onDelete:
			w.Held = onDelete
		case valueAt[bool](spec, "paused"):
			w.Held = "paused"
		}
	}
	if k.Group == "batch" {
		w.addJob(text)
	}
	s.Workloads[w.Ref] = w
	return nil
}

// addJob adds what a CronJob or Job says about its pods of the future.
func (w *Workload) addJob(text []byte) {
	w.Schedule, w.TimeZone = valueAt[string](text, "spec.schedule"), valueAt[string](text, "spec.timeZone")
	for _, c := range valueAt[[]batchv1.JobCondition](text, "status.conditions") {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			w.Ended = true
		}
	}
}

// decodeTemplate decodes the pod template at a path. That of most kinds is read in one pass.
func decodeTemplate(text []byte, path string, into *corev1.PodTemplateSpec) error {
	if path == inSpec {
		var object struct {
			Spec struct {
				Template *corev1.PodTemplateSpec `json:"template"`
			} `json:"spec"`
		}
		if decode(text, &object) == nil && object.Spec.Template != nil {
			*into = *object.Spec.Template
			return nil
		}
	}
	part, err := field(text, strings.Split(path, ".")) // names what is missing or invalid
	if err != nil {
		return err
	}
	return decode(part, into)
}

// trim removes what says nothing about tokens and injection: half of the memory of a usual template.
func trim(spec *corev1.PodSpec) {
	spec.Affinity, spec.TopologySpreadConstraints = nil, nil
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			c := &list[i]
			c.LivenessProbe, c.ReadinessProbe, c.StartupProbe, c.Lifecycle = nil, nil, nil, nil
		}
	}
}

// field returns the JSON of a field.
func field(text []byte, path []string) ([]byte, error) {
	for i, name := range path {
		var object map[string]json.RawMessage
		if err := decode(text, &object); err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(path[:i], "."), err)
		}
		if text = object[name]; text == nil {
			return nil, fmt.Errorf("%s is required", strings.Join(path[:i+1], "."))
		}
	}
	return text, nil
}

// addForeign adds an object that has pods but no ordinary pod template.
func (s *Survey) addForeign(h *header, text []byte) error {
	spec, err := field(text, []string{"spec"})
	if err != nil {
		return err
	}
	written, err := yaml.JSONToYAML(spec)
	if err != nil {
		return err
	}
	w := &Workload{Ref: h.ref(), Version: versionOf(h.APIVersion), Meta: h.Metadata.Meta, Foreign: true, Signs: signs.Text(string(written))}
	if parent, found := h.controller(); found {
		w.Manager = parent.Kind + "/" + parent.Name
	}
	paths := foreignPaths[h.Kind]
	w.Template.Spec.ServiceAccountName = valueAt[string](spec, paths.account)
	w.Template.Labels = valueAt[map[string]string](spec, paths.labels)
	s.Workloads[w.Ref] = w
	return nil
}

// foreignPaths has the paths in the spec of kinds without an ordinary pod template that have one field for
// the service account and one for the labels. Spark's executors have labels of their own.
var foreignPaths = map[string]struct{ account, labels string }{
	"Workflow":                  {"serviceAccountName", "podMetadata.labels"},
	"WorkflowTemplate":          {"serviceAccountName", "podMetadata.labels"},
	"CronWorkflow":              {"workflowSpec.serviceAccountName", "workflowSpec.podMetadata.labels"},
	"SparkApplication":          {"driver.serviceAccount", "driver.labels"},
	"ScheduledSparkApplication": {"template.driver.serviceAccount", "template.driver.labels"},
}

// valueAt returns the value at a path, or the zero value.
func valueAt[T any](text []byte, path string) (value T) {
	part, err := field(text, strings.Split(path, "."))
	if path == "" || err != nil || json.Unmarshal(part, &value) != nil {
		return *new(T)
	}
	return value
}

func (s *Survey) addPod(h *header, text []byte) error {
	var object struct {
		Spec   corev1.PodSpec `json:"spec"`
		Status struct {
			Phase corev1.PodPhase `json:"phase"`
		} `json:"status"`
	}
	if err := decode(text, &object); err != nil {
		return err
	}
	if object.Status.Phase == corev1.PodSucceeded || object.Status.Phase == corev1.PodFailed {
		return nil // also evicted ones
	}
	if len(object.Spec.Containers) == 0 {
		return fmt.Errorf("spec.containers is required")
	}
	_, mirror := h.Metadata.Annotations[corev1.MirrorPodAnnotationKey]
	p := pod{ref: h.ref(), meta: h.Metadata.Meta, hash: h.Metadata.Labels["pod-template-hash"], injected: injectedIn(&object.Spec), static: mirror}
	p.owner, _ = h.controller()
	if w := s.Workloads[s.top(p)]; w == nil || len(w.Template.Spec.Containers) == 0 {
		trim(&object.Spec)
		p.spec = &object.Spec // the template of a workload that was not read, or not yet
	} else {
		p.meta = Meta{}
	}
	s.pods = append(s.pods, p)
	return nil
}

// Owner returns the workload of a pod that was not read, because it has ended or is newer than the survey.
func (s *Survey) Owner(p *corev1.Pod) Ref {
	pod := pod{ref: Ref{Kind: "Pod", Namespace: p.Namespace, Name: p.Name}, hash: p.Labels["pod-template-hash"]}
	_, pod.static = p.Annotations[corev1.MirrorPodAnnotationKey]
	if o := metav1.GetControllerOf(p); o != nil {
		pod.owner = Ref{groupOf(o.APIVersion), o.Kind, p.Namespace, o.Name}
	}
	return s.top(pod)
}

// top returns the reference of a pod's workload: the pod itself if it has no owner.
func (s *Survey) top(p pod) Ref {
	ref := p.owner
	if ref == (Ref{}) || p.static {
		return p.ref
	}
	if deployment, ok := s.deploymentOf(p); ok {
		return deployment
	}
	for range maxOwners {
		parent, found := s.parents[ref]
		if !found {
			break
		}
		ref = parent
	}
	return ref
}

// maxOwners bounds the owners of owners. Real objects have two, and hostile ones can own each other.
const maxOwners = 8

// deploymentOf returns the Deployment of a pod whose ReplicaSet was not read: the name of a ReplicaSet is
// that of its Deployment and the hash in the label of its pods.
func (s *Survey) deploymentOf(p pod) (Ref, bool) {
	if _, read := s.parents[p.owner]; read || p.owner.Kind != "ReplicaSet" {
		return Ref{}, false
	}
	name, cut := strings.CutSuffix(p.owner.Name, "-"+p.hash)
	ref := Ref{p.owner.Group, "Deployment", p.owner.Namespace, name}
	return ref, cut && s.Workloads[ref] != nil
}

// injectedIn returns what webhooks have added to a pod.
func injectedIn(spec *corev1.PodSpec) (found Injected) {
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if c.Name == proxyName {
			found.Proxy, found.Image = true, c.Image
			continue
		}
		found.TokenFile = found.TokenFile || slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == azure.EnvFederatedTokenFile })
	}
	return found
}

// Finish finds the owner of each pod. It is called once, after everything was read.
func (s *Survey) Finish() {
	slices.SortFunc(s.pods, func(a, b pod) int { return a.ref.Compare(b.ref) })
	s.pods = slices.CompactFunc(s.pods, func(a, b pod) bool { return a.ref == b.ref })
	for _, p := range s.pods {
		w := s.workloadOf(p)
		w.Pods++
		s.Owners[p.ref.Namespace+"/"+p.ref.Name] = w.Ref
		if p.injected.Proxy {
			w.Proxied++
			w.Live.Proxy, w.Live.Image = true, p.injected.Image
		}
		w.Live.TokenFile = w.Live.TokenFile || p.injected.TokenFile
		w.Static = w.Static || p.static
	}
	s.pods = nil
	s.index()
	s.completeness()
}

// workloadOf returns the workload of a pod. It adds one for a pod without an owner, and for an owner that
// is not in the survey.
func (s *Survey) workloadOf(p pod) *Workload {
	ref := s.top(p)
	w := s.Workloads[ref]
	if w == nil {
		w = &Workload{Ref: ref, Foreign: ref != p.ref}
		s.Workloads[ref] = w
	}
	if len(w.Template.Spec.Containers) == 0 && p.spec != nil {
		w.Template.Labels, w.Template.Annotations, w.Template.Spec = p.meta.Labels, p.meta.Annotations, *p.spec
		if !w.Foreign {
			w.Meta = p.meta
		}
	}
	return w
}

// completeness records the kinds that every cluster has and that the files lack: these were not
// exported.
func (s *Survey) completeness() {
	if s.Live {
		return
	}
	for _, name := range []string{"namespaces", "serviceaccounts", "pods"} {
		if s.Found[name] == 0 {
			s.unread(Missing, name, "the files contain none: add them with kubectl get "+name+" --all-namespaces --output=yaml")
		}
	}
}

// HasWorkloads reports whether anything was read that may use an identity.
func (s *Survey) HasWorkloads() bool {
	return len(s.Workloads) > 0 || s.Live
}
