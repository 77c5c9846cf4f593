package main

import (
	"errors"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/manifest"
)

// object changes the pod templates of one object.
func (m *migration) object(f *file, o object) {
	paths, custom := m.options.paths(o.kindAndGroup())
	if len(paths) == 0 {
		m.withoutTemplate(f, o)
		return
	}
	v := visit{m: m, f: f, o: o, warned: map[string]bool{}}
	found := false
	for _, path := range paths {
		exists, err := v.templates(path)
		switch {
		case err != nil:
			m.refuse(f, o, err)
			return
		case !exists && custom:
			m.skip(f, o, o.node.Line(), "not changed: it has nothing at "+path.String()+", the path of --template-path")
		}
		found = found || exists
	}
	if !found && !custom {
		m.unchanged++
		v.warnAbove(paths[0], place{above: []*manifest.Node{o.node}})
	}
}

// visit is the visit of one object.
type visit struct {
	m      *migration
	f      *file
	o      object
	warned map[string]bool // the warnings of warnAbove, which are the same for several pod templates
}

// templates changes the pod templates at a path, and reports whether there is one.
func (v visit) templates(path path) (exist bool, err error) {
	places, err := v.o.places(path)
	for _, p := range places {
		template, err := p.template()
		if err == nil && template != nil {
			v.warnAbove(path, p)
			err = v.m.workload(v.f, v.o, template)
		}
		if err != nil {
			v.m.refuse(v.f, v.o, locate(template, err))
		}
		exist = exist || err != nil || template != nil
	}
	return exist, err
}

// skip warns about a workload that is not changed.
func (m *migration) skip(f *file, o object, line int, reason string) {
	m.skipped++
	m.warn(f, o, line, reason)
}

// count counts a workload that is not skipped.
func (m *migration) count(changed bool) {
	if changed {
		m.changed++
	} else {
		m.unchanged++
	}
}

// workload changes one pod or pod template.
func (m *migration) workload(f *file, o object, template *manifest.Node) error {
	requested, selected := m.relevant(template), m.selected(o)
	m.matched = m.matched || selected
	if reason := derived(o); reason != "" && (requested || selected && !m.options.uninject) {
		m.skip(f, o, template.Line(), reason)
		return nil
	}
	if m.options.uninject {
		return m.uninject(template, o, selected)
	}
	if err := m.patches.patch(f, o, template); err != nil {
		switch {
		case !m.options.all && template.Get("spec") != nil:
			return err
		case requested || selected:
			m.skip(f, o, template.Line(), reasonOf(err))
			return nil
		}
	}
	if !requested && !selected {
		m.warnUnrequested(f, o, template)
		m.count(false)
		return nil
	}
	return m.injectSelected(f, o, template, selected)
}

// injectSelected injects into a workload that requests it or that --all selects. If it cannot have
// the marks of --all, it gets what its author has requested.
func (m *migration) injectSelected(f *file, o object, template *manifest.Node, selected bool) error {
	pod, err := o.pod(template)
	if err != nil {
		return err
	}
	if selected {
		if added := missingMarks(template); len(added) > 0 {
			done, err := m.injectMarked(f, o, template, pod, added)
			if done || err != nil {
				return err
			}
		}
	}
	if !m.relevant(template) {
		m.skipped++
		return nil
	}
	return m.inject(f, o, template, pod, nil)
}

// injectMarked injects into a workload with the marks of --all. If the workload cannot have them, it
// warns, and reports that it has done nothing: nobody has asked for the proxy of this workload by
// name, so it does not stop the run.
func (m *migration) injectMarked(f *file, o object, template *manifest.Node, pod *corev1.Pod, added []mark) (done bool, err error) {
	err = m.inject(f, o, template, pod, added)
	refusal, ok := errors.AsType[*inject.Refusal](err)
	if !ok || written(template, refusal.Where) {
		return true, err
	}
	reason := refusal.Error()
	if strings.Contains(reason, inject.InjectProxyAnnotation) {
		reason, _, _ = strings.Cut(reason, "; ") // the remedy would be to remove an annotation that is not there
	}
	m.warn(f, o, lineOf(template, refusal.Where), "--all does not add the proxy here: "+reason)
	return false, nil
}

// written reports whether a refusal is about what an author has written for injection: an annotation
// of the template, or a service account.
func written(template *manifest.Node, where string) bool {
	name, isAnnotation := strings.CutPrefix(where, "annotation ")
	if isAnnotation {
		return template.Get("metadata", "annotations", name) != nil
	}
	return !strings.HasPrefix(where, "spec.")
}

// inject adds the marks and the annotation of --identity-file, and then applies the patch of the
// pod.
func (m *migration) inject(f *file, o object, template *manifest.Node, pod *corev1.Pod, added []mark) error {
	if len(added) > 0 {
		pod = marked(pod, added)
	}
	account, warning := m.account(pod)
	identities, err := m.identityMark(f, o, template, pod, account)
	if err != nil {
		return err
	}
	var operations []manifest.Operation
	if added = append(added, identities...); len(added) > 0 {
		pod = marked(pod, added)
		operations = addOperations(template, pod, added)
	}
	result, err := inject.Pod(pod, account, m.options.config)
	if err != nil {
		return err
	}
	if warning != "" && pod.Labels[inject.UseLabel] == "true" {
		m.warn(f, o, template.Line(), warning)
	}
	for _, op := range result.Patch {
		operations = append(operations, manifest.Operation(op))
	}
	warning, err = irreversible(pod, result.Patch, emptied(template, operations))
	if err != nil {
		return err
	}
	if warning != "" {
		result.Warnings = append(result.Warnings, warning)
	}
	for _, w := range result.Warnings {
		m.warn(f, o, template.Line(), w)
	}
	m.count(len(operations) > 0)
	return template.Apply(operations)
}

// emptied returns the keys that the operations fill and that are written without a value, or with an
// empty list or mapping. The removal of the value removes the key.
func emptied(template *manifest.Node, operations []manifest.Operation) []string {
	var keys []string
	for _, op := range operations {
		if node, name := follow(template, op.Path); op.Op == "add" && node != nil && node.IsEmpty() {
			keys = append(keys, name)
		}
	}
	return keys
}

// follow returns the value at a JSON pointer, or nil, and its path for a message, such as
// spec.containers[app].env.
func follow(node *manifest.Node, pointer string) (found *manifest.Node, name string) {
	for token := range strings.SplitSeq(pointer[1:], "/") {
		token = unpointer(token)
		if i, err := strconv.Atoi(token); err == nil && node.Item(i) != nil {
			node = node.Item(i)
			token, _ = node.Get("name").Scalar()
			name += "[" + token + "]"
			continue
		}
		node = node.Get(token)
		name += "." + token
	}
	return node, name[1:]
}

func (m *migration) uninject(template *manifest.Node, o object, selected bool) error {
	if !m.relevant(template) {
		m.count(false)
		return nil
	}
	pod, err := o.pod(template)
	if err != nil {
		return err
	}
	var operations []manifest.Operation
	for _, op := range inject.Remove(pod).Patch {
		operations = append(operations, manifest.Operation(op))
	}
	if err := template.Apply(operations); err != nil {
		return err
	}
	added := removeOperations(template, selected) // counts what the operations before have left
	m.count(len(operations)+len(added) > 0)
	return template.Apply(added)
}

// locate adds a line number to an error about a pod: that of the field, or that of the pod template
// if the manifest does not contain the field.
func locate(template *manifest.Node, err error) error {
	refusal, ok := errors.AsType[*inject.Refusal](err)
	if !ok {
		return err
	}
	return &manifest.Error{Line: lineOf(template, refusal.Where), Reason: err.Error()}
}

func lineOf(template *manifest.Node, where string) int {
	at := template.Get(strings.Split(where, ".")...)
	if name, isAnnotation := strings.CutPrefix(where, "annotation "); isAnnotation {
		at = template.Get("metadata", "annotations", name)
	}
	if at == nil || at.Line() == 0 {
		at = template
	}
	return at.Line()
}

func reasonOf(err error) string {
	if where, ok := errors.AsType[*manifest.Error](err); ok {
		return where.Reason
	}
	return err.Error()
}
