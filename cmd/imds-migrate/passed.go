package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/manifest"
)

// This file has the warnings about what looks like a request for injection and has no effect.

// withoutTemplate warns about an object of a kind that is not changed.
func (m *migration) withoutTemplate(f *file, o object) {
	account, err := o.serviceAccount()
	switch {
	case err != nil:
		m.refuse(f, o, err)
	case m.options.uninject:
	case account != nil:
		for _, reason := range inject.WrongAccountNames(account) {
			m.warn(f, o, o.node.Line(), reason)
		}
	default:
		m.unknownKind(f, o)
	}
}

// unknownKind warns about a custom resource that requests injection, and with --all about one that
// has pods.
func (m *migration) unknownKind(f *file, o object) {
	selected := m.selected(o)
	found := finding{}
	found.search(o.node, nil)
	switch {
	case found.request != nil:
		m.skip(f, o, o.node.Line(), fmt.Sprintf("not changed, although %s requests injection: %s", found.request, o.advice(found.request)))
	case selected && (found.podSpec != nil || hasPods[o.kindAndGroup()]):
		m.skip(f, o, o.node.Line(), "not changed, although it has pods: "+o.advice(append(found.podSpec, "")))
	}
}

// hasPods has kinds whose pods are not described by an ordinary pod template.
var hasPods = map[kind]bool{
	{"argoproj.io", "CronWorkflow"}:                       true,
	{"argoproj.io", "Workflow"}:                           true,
	{"argoproj.io", "WorkflowTemplate"}:                   true,
	{"sparkoperator.k8s.io", "ScheduledSparkApplication"}: true,
	{"sparkoperator.k8s.io", "SparkApplication"}:          true,
	{"tekton.dev", "Pipeline"}:                            true,
	{"tekton.dev", "PipelineRun"}:                         true,
	{"tekton.dev", "Task"}:                                true,
	{"tekton.dev", "TaskRun"}:                             true,
}

// finding is what a search has found first.
type finding struct {
	request path // labels or annotations with the label or the annotation that request injection
	podSpec path // a mapping with a list of containers
}

func (found *finding) search(node *manifest.Node, at path) {
	for key, value := range node.All() {
		below := append(slices.Clip(at), key)
		if found.request == nil && len(at) > 0 && requests(key, value, at) {
			found.request = below
		}
		if first := value.Items(); found.podSpec == nil && key == "containers" && len(first) > 0 && first[0].Get("image") != nil {
			found.podSpec = at
		}
		found.search(value, below)
	}
	for i, item := range node.Items() {
		found.search(item, append(slices.Clip(at), strconv.Itoa(i)))
	}
}

// requests reports whether labels or annotations request injection. Keys such as podLabels count too.
// Labels of selectors and of the object itself do not: kustomize adds labels to all objects.
func requests(key string, value *manifest.Node, at path) bool {
	lower := strings.ToLower(key)
	isMetadata := strings.HasSuffix(lower, "labels") || strings.HasSuffix(lower, "annotations")
	if !isMetadata || lower == "matchlabels" || len(at) == 1 && at[0] == "metadata" {
		return false
	}
	return slices.ContainsFunc(marks, func(mark mark) bool {
		text, _ := value.Get(mark.name).Scalar()
		return strings.EqualFold(text, "true")
	})
}

// advice returns how the pods of a custom resource get the proxy. The argument is the path of
// something in the metadata or the spec of the pod template.
func (o object) advice(at path) string {
	const webhook = "use the admission webhook, which changes the pods"
	switch {
	case o.kind == "Template" && (o.group == "template.openshift.io" || o.group == ""):
		return "process it first: oc process --filename FILE --output yaml | imds-migrate inject -"
	case o.group == "kustomize.config.k8s.io":
		return renderFirst
	case o.group == "serving.knative.dev":
		return webhook + " (Knative refuses init containers by default)"
	}
	last := len(at) - 2
	if last <= 0 || at[last] != "metadata" && at[last] != "spec" || hasPods[o.kindAndGroup()] {
		return webhook
	}
	return fmt.Sprintf("set --template-path=%s=%s if this is an ordinary pod template, or %s", o.kindAndGroup(), at[:last].withLists(), webhook)
}

// withLists returns a path whose indexes are replaced by [], the form of --template-path.
func (p path) withLists() path {
	var lists path
	for _, key := range p {
		if _, err := strconv.Atoi(key); err == nil && len(lists) > 0 {
			lists[len(lists)-1] += "[]"
			continue
		}
		lists = append(lists, key)
	}
	return lists
}

// warnAbove warns about labels and annotations of injection that are on a workload and not on its pod
// template.
func (v visit) warnAbove(path path, p place) {
	if v.m.options.uninject {
		return
	}
	for _, owner := range p.above {
		for _, a := range inject.Annotations() {
			for _, part := range []string{"labels", "annotations"} {
				node := owner.Get("metadata", part, a.Name)
				if node == nil || p.node.Get("metadata", part, a.Name) != nil || a.Name == inject.AddedAnnotation || v.m.selected(v.o) && isMark(a.Name) {
					continue
				}
				v.warnOnce(node.Line(), fmt.Sprintf("%s %s has no effect on a %s: it must be on the %s",
					strings.TrimSuffix(part, "s"), a.Name, v.o.kind, strings.Replace(a.On, "pod", "pod template ("+path.String()+")", 1)))
			}
		}
	}
}

func (v visit) warnOnce(line int, text string) {
	key := fmt.Sprint(line, text)
	if !v.warned[key] {
		v.m.warn(v.f, v.o, line, text)
	}
	v.warned[key] = true
}

func isMark(name string) bool {
	return slices.ContainsFunc(marks, func(mark mark) bool { return mark.name == name })
}

// warnUnrequested warns about a pod template without the label whose author probably wants injection.
func (m *migration) warnUnrequested(f *file, o object, template *manifest.Node) {
	pod := new(corev1.Pod)
	if metadata := template.Get("metadata"); metadata.IsMapping() && decode(metadata, &pod.ObjectMeta) == nil {
		for _, reason := range inject.WrongNames(pod) {
			m.warn(f, o, template.Line(), reason)
		}
	}
	account, _ := template.Get("spec", "serviceAccountName").Scalar()
	deprecated, _ := template.Get("spec", "serviceAccount").Scalar()
	account = o.namespace + "/" + cmp.Or(account, deprecated, "default")
	if known := m.accounts[account]; known != nil && known.Labels[inject.UseLabel] == "true" {
		m.warn(f, o, template.Line(), fmt.Sprintf("label %s has no effect on ServiceAccount %s alone: write it on the pod template too", inject.UseLabel, account))
	}
}
