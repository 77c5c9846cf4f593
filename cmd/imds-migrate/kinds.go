package main

import (
	"slices"
	"strings"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/manifest"
)

// kind is a kind of objects, by its API group.
type kind struct{ group, kind string }

// String returns the form of --template-path.
func (k kind) String() string { return strings.TrimSuffix(k.kind+"."+k.group, ".") }

// path is the path of a pod template in an object. It is empty for a Pod.
type path []string

func (p path) String() string { return strings.Join(p, ".") }

// inSpec is the path in most kinds.
var inSpec = path{"spec", "template"}

// templates has the path of the pod template for each kind that has an ordinary one.
var templates = map[kind]path{
	{"", "Pod"}:                   {},
	{"", "PodTemplate"}:           {"template"},
	{"", "ReplicationController"}: inSpec,
	{"apps", "Deployment"}:        inSpec,
	{"apps", "StatefulSet"}:       inSpec,
	{"apps", "DaemonSet"}:         inSpec,
	{"apps", "ReplicaSet"}:        inSpec,
	{"batch", "Job"}:              inSpec,
	{"batch", "CronJob"}:          {"spec", "jobTemplate", "spec", "template"},

	{"argoproj.io", "Rollout"}:                inSpec,
	{"apps.kruise.io", "BroadcastJob"}:        inSpec,
	{"apps.kruise.io", "CloneSet"}:            inSpec,
	{"apps.kruise.io", "DaemonSet"}:           inSpec,
	{"apps.kruise.io", "StatefulSet"}:         inSpec,
	{"apps.openshift.io", "DeploymentConfig"}: inSpec,
	{"keda.sh", "ScaledJob"}:                  {"spec", "jobTargetRef", "template"},
}

// templatePath is a value of --template-path.
type templatePath struct {
	kind
	path
}

// parseTemplatePath parses KIND.GROUP=PATH.
func parseTemplatePath(text string) (templatePath, error) {
	name, keys, _ := strings.Cut(text, "=")
	var t templatePath
	t.kind.kind, t.group, _ = strings.Cut(name, ".")
	t.path = strings.Split(keys, ".")
	if t.kind.kind == "" || slices.Contains(t.path, "") {
		return t, azure.Invalid(text, "must be KIND.GROUP=PATH, such as Rollout.argoproj.io=spec.template")
	}
	return t, nil
}

// paths returns the paths of the pod templates of a kind, or none for a kind without pods. Those of
// --template-path replace the built-in one.
func (o *options) paths(of kind) (paths []path, custom bool) {
	for _, t := range o.templatePaths {
		if t.kind == of {
			paths = append(paths, t.path)
		}
	}
	if builtIn, known := templates[of]; known && paths == nil {
		return []path{builtIn}, false
	}
	return paths, true
}

// template returns the node with a pod's metadata and spec, or nil if there is none. It returns an
// error if a key in its path, or a key in it that this program uses, occurs twice: Kubernetes may use
// the other one.
func (o object) template(path path) (*manifest.Node, error) {
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
	if !node.IsMapping() {
		return nil, nil
	}
	return node, nil
}
