package main

import (
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/manifest"
)

// marks are the label and the annotation with the value "true" that request injection.
var marks = []struct{ part, name string }{
	{"labels", inject.UseLabel},
	{"annotations", inject.InjectProxyAnnotation},
}

// selected reports whether --all and --selector select a workload.
func (m *migration) selected(o object) bool {
	return m.options.all && m.options.selector.Matches(ownLabels(o))
}

// addMarks adds the label and the annotation to a workload, unless the workload has one of them
// with another value, such as "false".
func addMarks(template *manifest.Node) error {
	for _, mark := range marks {
		text, _ := template.Get("metadata", mark.part, mark.name).Scalar()
		if text != "true" && template.Get("metadata", mark.part, mark.name) != nil {
			return nil
		}
	}
	return template.Apply(addOperations(template))
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

func addOperations(template *manifest.Node) []manifest.Operation {
	var operations []manifest.Operation
	add := func(path string, value any) {
		operations = append(operations, manifest.Operation{Op: "add", Path: path, Value: value})
	}
	if template.Get("metadata").Len() == 0 {
		add("/metadata", map[string]any{})
	}
	for _, mark := range marks {
		part := template.Get("metadata", mark.part)
		if part.Get(mark.name) != nil {
			continue
		}
		if part.Len() > 0 {
			add("/metadata/"+mark.part+"/"+pointer(mark.name), "true")
		} else {
			add("/metadata/"+mark.part, map[string]string{mark.name: "true"})
		}
	}
	return operations
}

// removeOperations removes the label and the annotation, and mappings that would be empty then.
func removeOperations(template *manifest.Node) []manifest.Operation {
	var operations []manifest.Operation
	remove := func(path string) {
		operations = append(operations, manifest.Operation{Op: "remove", Path: path})
	}
	left := template.Get("metadata").Len()
	for _, mark := range marks {
		part := template.Get("metadata", mark.part)
		if text, _ := part.Get(mark.name).Scalar(); text != "true" {
			continue
		}
		if part.Len() > 1 {
			remove("/metadata/" + mark.part + "/" + pointer(mark.name))
			continue
		}
		remove("/metadata/" + mark.part)
		if left--; left == 0 {
			remove("/metadata")
		}
	}
	return operations
}

// pointer returns a name as a token of a JSON pointer.
func pointer(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}
