package main

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/manifest"
)

// mark is a label or an annotation that this program adds to a template. Its id is its name in the
// annotation [inject.AddedAnnotation].
type mark struct{ id, part, name, value string }

// marks are the marks that request injection, which --all adds.
var marks = []mark{
	{"use", "labels", inject.UseLabel, "true"},
	{"inject-proxy-sidecar", "annotations", inject.InjectProxyAnnotation, "true"},
}

// identitiesID is the id of the annotation that --identity-file adds.
const identitiesID = "identities"

// selected reports whether --all and --selector select a workload.
func (m *migration) selected(o object) bool {
	return m.options.all && m.options.selector.Matches(ownLabels(o))
}

func ownLabels(o object) labels.Set {
	var metadata struct {
		Labels map[string]string `json:"labels"`
	}
	if node := o.node.Get("metadata"); node.IsMapping() && decode(node, &metadata) == nil {
		return metadata.Labels
	}
	return nil
}

// missingMarks returns the marks that --all adds to a template: none if the template has one of them
// with another value, such as "false".
func missingMarks(template *manifest.Node) []mark {
	var missing []mark
	for _, mark := range marks {
		node := template.Get("metadata", mark.part, mark.name)
		if text, _ := node.Scalar(); text != "true" && node != nil {
			return nil
		}
		if node == nil {
			missing = append(missing, mark)
		}
	}
	return missing
}

// marked returns a copy of a pod with added marks. It also records them in an annotation, so that
// uninject --all does not remove those of the author.
func marked(pod *corev1.Pod, added []mark) *corev1.Pod {
	pod = pod.DeepCopy()
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	record := recorded(pod.Annotations[inject.AddedAnnotation])
	for _, mark := range added {
		map[string]map[string]string{"labels": pod.Labels, "annotations": pod.Annotations}[mark.part][mark.name] = mark.value
		if !slices.Contains(record, mark.id) {
			record = append(record, mark.id)
		}
	}
	pod.Annotations[inject.AddedAnnotation] = strings.Join(record, ",")
	return pod
}

// recorded returns the marks in the value of the annotation.
func recorded(value string) []string {
	return slices.DeleteFunc(strings.Split(value, ","), func(id string) bool { return id == "" })
}

// addOperations returns the operations that add the marks of a marked pod to its template.
func addOperations(template *manifest.Node, pod *corev1.Pod, added []mark) []manifest.Operation {
	additions := map[string]map[string]string{"labels": {}, "annotations": {
		inject.AddedAnnotation: pod.Annotations[inject.AddedAnnotation],
	}}
	for _, mark := range added {
		additions[mark.part][mark.name] = mark.value
	}
	var operations []manifest.Operation
	add := func(path string, value any) {
		operations = append(operations, manifest.Operation{Op: "add", Path: path, Value: value})
	}
	if template.Get("metadata").Len() == 0 {
		add("/metadata", map[string]any{})
	}
	for _, part := range []string{"labels", "annotations"} {
		switch names := additions[part]; {
		case len(names) == 0:
		case template.Get("metadata", part).Len() == 0:
			add("/metadata/"+part, names)
		default:
			for _, name := range slices.Sorted(maps.Keys(names)) {
				add("/metadata/"+part+"/"+pointer(name), names[name])
			}
		}
	}
	return operations
}

// removeOperations removes the annotation that --identity-file has added and, if all is true, the
// marks that --all has added, and mappings that would be empty then.
func removeOperations(template *manifest.Node, all bool) []manifest.Operation {
	value, _ := template.Get("metadata", "annotations", inject.AddedAnnotation).Scalar()
	removals := map[string][]string{}
	var kept []string // of the record
	for _, id := range recorded(value) {
		if id == identitiesID && template.Get("metadata", "annotations", inject.IdentitiesAnnotation) != nil {
			removals["annotations"] = append(removals["annotations"], inject.IdentitiesAnnotation)
		} else if id != identitiesID && !all {
			kept = append(kept, id)
		}
	}
	for _, mark := range marks {
		text, _ := template.Get("metadata", mark.part, mark.name).Scalar()
		if all && slices.Contains(recorded(value), mark.id) && text == mark.value {
			removals[mark.part] = append(removals[mark.part], mark.name)
		}
	}
	if len(kept) == len(recorded(value)) {
		return nil
	}
	var operations []manifest.Operation
	if len(kept) > 0 {
		operations = append(operations, manifest.Operation{Op: "replace", Path: "/metadata/annotations/" + pointer(inject.AddedAnnotation), Value: strings.Join(kept, ",")})
	} else {
		removals["annotations"] = append(removals["annotations"], inject.AddedAnnotation)
	}
	remove := func(path string) {
		operations = append(operations, manifest.Operation{Op: "remove", Path: path})
	}
	left := template.Get("metadata").Len()
	for _, part := range []string{"labels", "annotations"} {
		names := removals[part]
		if len(names) > 0 && len(names) == template.Get("metadata", part).Len() {
			remove("/metadata/" + part)
			left--
			continue
		}
		for _, name := range names {
			remove("/metadata/" + part + "/" + pointer(name))
		}
	}
	if left == 0 {
		remove("/metadata")
	}
	return operations
}

// pointer returns a name as a token of a JSON pointer.
func pointer(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}

func unpointer(token string) string {
	return strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
}
