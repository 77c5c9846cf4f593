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

// inSpec is where most kinds hold the template of their pods.
var inSpec = []string{"spec", "template"}

// templates are where the kinds that run pods hold them, by group.
var templates = map[string]map[string][]string{
	"":      {"Pod": {}, "PodTemplate": {"template"}, "ReplicationController": inSpec},
	"apps":  {"Deployment": inSpec, "StatefulSet": inSpec, "DaemonSet": inSpec, "ReplicaSet": inSpec},
	"batch": {"Job": inSpec, "CronJob": {"spec", "jobTemplate", "spec", "template"}},
}

// objects are those of a document: itself, or what its lists hold. An item may leave its
// kind and apiVersion to the list, as in a DeploymentList that the API server wrote.
func (m *migration) objects(f *file, root *manifest.Node, list object) []object {
	if !root.IsMapping() {
		return nil
	}
	// What Kubernetes may take for another kind cannot be passed over.
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

// groupOf is the group of an apiVersion, empty for v1.
func groupOf(version string) string {
	group, _, found := strings.Cut(version, "/")
	if !found {
		return ""
	}
	return group
}

// template is the node with a pod's metadata and spec; nil for what runs no pod. There is
// none to be had where a key that leads to it, or to what concerns us in it, is given
// twice: Kubernetes may take the other.
func (o object) template() (*manifest.Node, error) {
	path, known := templates[o.group][o.kind]
	if !known {
		return nil, nil
	}
	node := o.node
	for _, key := range path {
		if err := node.Once(key); err != nil {
			return nil, err
		}
		node = node.Get(key)
	}
	for _, part := range []struct{ path, keys []string }{
		{nil, []string{"metadata", "spec"}},
		{[]string{"metadata"}, []string{"labels", "annotations"}},
		{[]string{"metadata", "labels"}, []string{inject.UseLabel}},
		{[]string{"metadata", "annotations"}, []string{inject.InjectProxyAnnotation}},
		{[]string{"spec"}, []string{"initContainers", "containers", "volumes"}},
	} {
		if err := node.Get(part.path...).Once(part.keys...); err != nil {
			return nil, err
		}
	}
	if !node.IsMapping() || node.Get("spec") == nil {
		return nil, nil
	}
	return node, nil
}

// concerned tells whether there is anything about a template that inject may have
// something to do or to say about.
func (m *migration) concerned(template *manifest.Node) bool {
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
	return m.options.uninject && hasReserved(template)
}

// hasReserved tells whether there may be something to take out that neither label nor
// container speaks of, since the label went first.
func hasReserved(template *manifest.Node) bool {
	return slices.ContainsFunc(template.Get("spec", "volumes").Items(), func(volume *manifest.Node) bool {
		name, _ := volume.Get("name").Scalar()
		return strings.HasPrefix(name, inject.VolumePrefix)
	})
}

// unquoted finds a label or annotation that is not a string, the way in which these are
// most often written wrong: the API server refuses them.
func unquoted(metadata *manifest.Node) error {
	for _, a := range inject.Annotations() {
		for _, part := range []string{"labels", "annotations"} {
			value := metadata.Get(part, a.Name)
			text, isString := value.Scalar()
			if value == nil || isString {
				continue
			}
			if v, err := value.Value(); err == nil && v == true { // yes, on, …
				text = "true"
			}
			return &manifest.Error{Line: value.Line(), Reason: fmt.Sprintf("%s: write it in quotes: %q", a.Name, text)}
		}
	}
	return nil
}

// unquotedEnv is the same for variables.
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

// pod is what the API server would be sent for a template, but for the name, which is
// not known yet: a Deployment's pods are called after a ReplicaSet that does not exist.
// inject derives names from it that azure-workload-identity's webhook has to find again,
// and chooses others where there is none.
func (o object) pod(template *manifest.Node) (*corev1.Pod, error) {
	if err := errors.Join(unquoted(template.Get("metadata")), unquotedEnv(template.Get("spec"))); err != nil {
		return nil, err
	}
	pod := new(corev1.Pod)
	if err := decode(template, pod); err != nil {
		return nil, err
	}
	pod.Namespace = o.namespace
	if o.kind != "Pod" {
		pod.Name, pod.GenerateName = "", ""
	}
	return pod, nil
}

// decode reads a node as the API server would, but for unknown fields, which may be
// newer than this program.
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
		return &manifest.Error{Line: node.Line(), Reason: "not what Kubernetes expects: " + expectation(err)}
	}
	return nil
}

// expectation is an error of decoding in one line. In YAML, yes and off are booleans, which
// authors often do not know.
func expectation(err error) string {
	reason := strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "json: ")
	if typed, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && typed.Type.Kind() == reflect.String && (typed.Value == "bool" || strings.HasPrefix(typed.Value, "number")) {
		reason += ": write it in quotes"
	}
	return reason
}

// fromNode tells what the kubelet makes of its own files, and what a controller has
// made: to change the copy does not change them.
func fromNode(o object) string {
	annotations := o.node.Get("metadata", "annotations")
	source, _ := annotations.Get("kubernetes.io/config.source").Scalar()
	if annotations.Get(corev1.MirrorPodAnnotationKey) != nil || source != "" && source != "api" {
		return inject.StaticPod
	}
	if owners := o.node.Get("metadata", "ownerReferences").Items(); len(owners) > 0 {
		kind, _ := owners[0].Get("kind").Scalar()
		name, _ := owners[0].Get("name").Scalar()
		return fmt.Sprintf("made by %s %s: left as it is; change that", kind, name)
	}
	return ""
}
