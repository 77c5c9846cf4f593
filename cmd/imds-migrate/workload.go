package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kubejson "k8s.io/apimachinery/pkg/util/json"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/manifest"
)

// object is one Kubernetes object of a document.
type object struct {
	node                         *manifest.Node
	group, kind, namespace, name string
}

func (o object) String() string { return fmt.Sprintf("%s %s/%s", o.kind, o.namespace, o.name) }

func (o object) kindAndGroup() kind { return kind{o.group, o.kind} }

// objects returns the object of a document, or the items of a list, also of nested lists. An item
// without kind and apiVersion gets them from the list, as in a DeploymentList of the API server.
func (m *migration) objects(f *file, root *manifest.Node, list object) []object {
	if !root.IsMapping() {
		return nil
	}
	// If one of these keys occurs twice, Kubernetes may read another kind, so the object cannot
	// be ignored.
	if err := root.Once("apiVersion", "kind", "items"); err != nil {
		m.refuse(f, object{}, err)
		return nil
	}
	o := object{node: root, group: list.group, kind: strings.TrimSuffix(list.kind, "List"), namespace: m.options.namespace}
	if kind, _ := root.Get("kind").Scalar(); kind != "" {
		o.kind = kind
	}
	if version, _ := root.Get("apiVersion").Scalar(); version != "" {
		o.group = groupOf(version)
	}
	if items := root.Get("items"); items != nil && strings.HasSuffix(o.kind, "List") {
		var all []object
		for _, item := range items.Items() {
			all = append(all, m.objects(f, item, o)...)
		}
		return all
	}
	if namespace, _ := root.Get("metadata", "namespace").Scalar(); namespace != "" {
		o.namespace = namespace
	}
	if o.name, _ = root.Get("metadata", "name").Scalar(); o.name == "" {
		o.name, _ = root.Get("metadata", "generateName").Scalar()
	}
	return []object{o}
}

// groupOf returns the group of an apiVersion, which is empty for v1.
func groupOf(version string) string {
	group, _, found := strings.Cut(version, "/")
	if !found {
		return ""
	}
	return group
}

// relevant reports whether a template requests injection, or has injected parts.
func (m *migration) relevant(template *manifest.Node) bool {
	if template.Get("metadata", "labels", inject.UseLabel) != nil ||
		template.Get("metadata", "annotations", inject.InjectProxyAnnotation) != nil {
		return true
	}
	for _, list := range []string{"initContainers", "containers"} {
		for _, container := range template.Get("spec", list).Items() {
			if name, _ := container.Get("name").Scalar(); name == inject.ProxyName || name == inject.ProxyInitName {
				return true
			}
		}
	}
	return m.options.uninject && (hasReserved(template) || template.Get("metadata", "annotations", inject.AddedAnnotation) != nil)
}

// hasReserved reports whether a template has an injected volume, which uninject removes even if the
// label was removed before.
func hasReserved(template *manifest.Node) bool {
	return slices.ContainsFunc(template.Get("spec", "volumes").Items(), func(volume *manifest.Node) bool {
		name, _ := volume.Get("name").Scalar()
		return strings.HasPrefix(name, inject.VolumePrefix)
	})
}

// unquoted returns an error for a label or annotation that is not a string. This is a frequent
// mistake, which the API server refuses.
func unquoted(metadata *manifest.Node) error {
	for _, a := range inject.Annotations() {
		for _, part := range []string{"labels", "annotations"} {
			value := metadata.Get(part, a.Name)
			text, isString := value.Scalar()
			if value == nil || isString {
				continue
			}
			if v, err := value.Value(); err == nil && v == true { // yes, on and others in YAML 1.1
				text = "true"
			}
			return &manifest.Error{Line: value.Line(), Reason: fmt.Sprintf("%s: write it in quotes: %q", a.Name, text)}
		}
	}
	return nil
}

// unquotedEnv returns an error for an environment variable whose value is not a string.
func unquotedEnv(spec *manifest.Node) error {
	for _, list := range []string{"initContainers", "containers"} {
		for _, container := range spec.Get(list).Items() {
			for _, variable := range container.Get("env").Items() {
				value := variable.Get("value")
				text, isString := value.Scalar()
				if value == nil || isString || text == "" || value.IsNull() {
					continue
				}
				return &manifest.Error{Line: value.Line(), Reason: fmt.Sprintf("value of a variable: write it in quotes: %q", text)}
			}
		}
	}
	return nil
}

// pod returns the pod of a template, without its name. The pods of a Deployment have no known name,
// since it depends on a ReplicaSet that does not exist yet, and workflow engines replace the name of
// a Pod that is their template. Package inject derives the name of the volume from the pod's name as
// azure-workload-identity does. If that webhook saw another name, it would add a second volume at
// the same mount path, so inject uses another path for a pod without a name.
func (o object) pod(template *manifest.Node) (*corev1.Pod, error) {
	if err := errors.Join(unquoted(template.Get("metadata")), unquotedEnv(template.Get("spec"))); err != nil {
		return nil, err
	}
	pod := new(corev1.Pod)
	if err := decode(template, pod); err != nil {
		return nil, err
	}
	pod.Namespace, pod.Name, pod.GenerateName = o.namespace, "", ""
	return pod, nil
}

// decode decodes a node as the API server would, except that it ignores unknown fields, which may
// be newer than this program.
func decode(node *manifest.Node, into any) error {
	value, err := node.Value()
	if err != nil {
		return err
	}
	text, err := json.Marshal(value)
	if err == nil {
		err = kubejson.Unmarshal(text, into)
	}
	if err != nil {
		return &manifest.Error{Line: node.Line(), Reason: "invalid for Kubernetes: " + decodeReason(err)}
	}
	return nil
}

// decodeReason returns an error of decoding in one line. It adds a hint for a string without quotes:
// many authors do not know that yes and off are booleans in YAML.
func decodeReason(err error) string {
	reason := strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "json: ")
	if typed, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && typed.Type.Kind() == reflect.String && (typed.Value == "bool" || strings.HasPrefix(typed.Value, "number")) {
		reason += ": write it in quotes"
	}
	return reason
}

// derived returns a warning about an object that the kubelet or a controller created from another
// one, or "". A change of such an object has no effect on its source.
func derived(o object) string {
	annotations := o.node.Get("metadata", "annotations")
	source, _ := annotations.Get("kubernetes.io/config.source").Scalar()
	if annotations.Get(corev1.MirrorPodAnnotationKey) != nil || source != "" && source != "api" {
		return inject.StaticPod
	}
	if owners := o.node.Get("metadata", "ownerReferences").Items(); len(owners) > 0 {
		kind, _ := owners[0].Get("kind").Scalar()
		name, _ := owners[0].Get("name").Scalar()
		return fmt.Sprintf("created by %s %s: not changed; change that object instead", kind, name)
	}
	return ""
}
