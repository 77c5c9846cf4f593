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

// path is the path of the pod templates in an object. It is empty for a Pod. A key that ends with []
// is that of a list, in which each item has one.
type path []string

func (p path) String() string { return strings.Join(p, ".") }

// parsePath returns the path of a text such as spec.template.
func parsePath(text string) path {
	if text == "" {
		return nil
	}
	return strings.Split(text, ".")
}

// templates has the paths of the pod templates for each kind that has ordinary ones.
var templates = map[kind][]string{
	{"", "Pod"}:                   {""},
	{"", "PodTemplate"}:           {"template"},
	{"", "ReplicationController"}: {"spec.template"},
	{"apps", "Deployment"}:        {"spec.template"},
	{"apps", "StatefulSet"}:       {"spec.template"},
	{"apps", "DaemonSet"}:         {"spec.template"},
	{"apps", "ReplicaSet"}:        {"spec.template"},
	{"batch", "Job"}:              {"spec.template"},
	{"batch", "CronJob"}:          {"spec.jobTemplate.spec.template"},

	{"argoproj.io", "Rollout"}:                      {"spec.template"},
	{"apps.kruise.io", "BroadcastJob"}:              {"spec.template"},
	{"apps.kruise.io", "CloneSet"}:                  {"spec.template"},
	{"apps.kruise.io", "DaemonSet"}:                 {"spec.template"},
	{"apps.kruise.io", "StatefulSet"}:               {"spec.template"},
	{"apps.openshift.io", "DeploymentConfig"}:       {"spec.template"},
	{"jobset.x-k8s.io", "JobSet"}:                   {"spec.replicatedJobs[].template.spec.template"},
	{"keda.sh", "ScaledJob"}:                        {"spec.jobTargetRef.template"},
	{"leaderworkerset.x-k8s.io", "LeaderWorkerSet"}: {"spec.leaderWorkerTemplate.leaderTemplate", "spec.leaderWorkerTemplate.workerTemplate"},
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
	t.path = parsePath(keys)
	if t.kind.kind == "" || len(t.path) == 0 || slices.Contains(t.path, "") || slices.Contains(t.path, "[]") {
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
	if paths != nil {
		return paths, true
	}
	for _, text := range templates[of] {
		paths = append(paths, parsePath(text))
	}
	return paths, false
}

// place is where a pod template is, or would be.
type place struct {
	node  *manifest.Node   // nil: there is nothing
	above []*manifest.Node // the values on the path to it, the object first
}

// places returns the places at a path: one, unless a list is on the path.
func (o object) places(path path) ([]place, error) {
	found := []place{{node: o.node}}
	for _, step := range path {
		key, isList := strings.CutSuffix(step, "[]")
		var below []place
		for _, p := range found {
			if err := p.node.Once(key); err != nil {
				return nil, err
			}
			values := []*manifest.Node{p.node.Get(key)}
			if isList {
				values = values[0].Items()
			}
			for _, value := range values {
				below = append(below, place{value, append(slices.Clip(p.above), p.node)})
			}
		}
		found = below
	}
	return found, nil
}

// template returns the node with a pod's metadata and spec, or nil if there is none. It returns an
// error if a key in it that this program uses occurs twice: Kubernetes may use the other one.
func (p place) template() (*manifest.Node, error) {
	for _, part := range []struct{ path, keys []string }{
		{nil, []string{"metadata", "spec"}},
		{[]string{"metadata"}, []string{"labels", "annotations"}},
		{[]string{"metadata", "labels"}, []string{inject.UseLabel}},
		{[]string{"metadata", "annotations"}, []string{inject.InjectProxyAnnotation}},
		{[]string{"spec"}, []string{"initContainers", "containers", "volumes"}},
	} {
		if err := p.node.Get(part.path...).Once(part.keys...); err != nil {
			return nil, err
		}
	}
	if !p.node.IsMapping() {
		return nil, nil
	}
	return p.node, nil
}
