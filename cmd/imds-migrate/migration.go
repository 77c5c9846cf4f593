package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/manifest"
)

// migration is one run over all files. It continues after a refusal, so that one run reports all
// refusals.
type migration struct {
	options  options
	accounts accounts
	messages []string
	refused  int
}

// document is a document of a file.
type document struct {
	file *file
	*manifest.Document
	objects []object
}

// edit sets the changed text of each file.
func (m *migration) edit(files []*file, stdin io.Reader) {
	m.accounts = accounts{}
	m.readAccounts(stdin)
	var documents []document
	for _, f := range files {
		documents = append(documents, m.parse(f)...)
	}
	// First all service accounts: one may come after the workload that uses it.
	for _, d := range documents {
		m.collect(d)
	}
	for _, d := range documents {
		m.document(d)
	}
}

func (m *migration) parse(f *file) []document {
	if isUTF16(f.text) {
		m.refuse(f, object{}, errors.New("the file is UTF-16: save it as UTF-8"))
		return nil
	}
	var documents []document
	for _, part := range manifest.Split(f.text) {
		d, err := manifest.Parse(part)
		if err != nil || d.Root() != nil && d.Root().HasOddKey() {
			if err = notManifest(part, err); err != nil {
				m.refuse(f, object{}, err)
				continue
			}
		}
		documents = append(documents, document{file: f, Document: d, objects: m.objects(f, d.Root(), object{})})
	}
	return documents
}

// isUTF16 reports whether a text begins with the byte order mark of UTF-16, which PowerShell's >
// writes.
func isUTF16(text []byte) bool {
	return bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff"))
}

var templateAction = regexp.MustCompile(`\{\{.*\}\}`)

// notManifest returns the error for a document that is not a manifest: a special one for a
// template, otherwise err. Without err, an odd key alone is not an error.
func notManifest(part manifest.Part, err error) error {
	if at := templateAction.FindIndex(part.Text); at != nil {
		line := part.Line + bytes.Count(part.Text[:at[0]], []byte("\n"))
		return &manifest.Error{Line: line, Reason: "a template, not a manifest: render it first (helm template … | imds-migrate inject …)"}
	}
	return err
}

func (m *migration) document(d document) {
	for _, o := range d.objects {
		template, err := o.template()
		if template != nil {
			err = m.workload(d.file, o, template)
		}
		if err != nil {
			m.refuse(d.file, o, locate(template, err))
		}
	}
	text, err := d.Text()
	if err != nil {
		m.refuse(d.file, object{}, err)
	}
	d.file.after = append(d.file.after, text...)
}

// workload changes one pod or pod template.
func (m *migration) workload(f *file, o object, template *manifest.Node) error {
	reason := derived(o)
	if reason == "" && !m.options.uninject && m.selected(o) {
		if err := addMarks(template); err != nil {
			return err
		}
	}
	if !m.relevant(template) {
		return nil
	}
	if reason != "" {
		m.report(f, o, template.Line(), "warning: "+reason)
		return nil
	}
	pod, err := o.pod(template)
	if err != nil {
		return err
	}
	if m.options.uninject {
		return m.uninject(o, template, pod)
	}
	return m.inject(f, o, template, pod)
}

func (m *migration) uninject(o object, template *manifest.Node, pod *corev1.Pod) error {
	err := apply(template, inject.Remove(pod).Patch)
	if m.selected(o) {
		err = errors.Join(err, template.Apply(removeOperations(template)))
	}
	return err
}

func (m *migration) inject(f *file, o object, template *manifest.Node, pod *corev1.Pod) error {
	account, warning := m.account(pod)
	if warning != "" && pod.Labels[inject.UseLabel] == "true" {
		m.report(f, o, template.Line(), "warning: "+warning)
	}
	result, err := inject.Pod(pod, account, m.options.config)
	if err != nil {
		return err
	}
	warning, err = irreversible(pod, result.Patch)
	if err != nil {
		return err
	}
	if warning != "" {
		result.Warnings = append(result.Warnings, warning)
	}
	for _, w := range result.Warnings {
		m.report(f, o, template.Line(), "warning: "+w)
	}
	return apply(template, result.Patch)
}

func apply(template *manifest.Node, patch []inject.Operation) error {
	operations := make([]manifest.Operation, len(patch))
	for i, op := range patch {
		operations[i] = manifest.Operation(op)
	}
	return template.Apply(operations)
}

// locate adds a line number to an error about a pod: that of the field, or that of the pod template
// if the manifest does not contain the field.
func locate(template *manifest.Node, err error) error {
	refusal, ok := errors.AsType[*inject.Refusal](err)
	if !ok {
		return err
	}
	at := template
	if name, isAnnotation := strings.CutPrefix(refusal.Where, "annotation "); isAnnotation {
		at = template.Get("metadata", "annotations", name)
	} else if field := template.Get(strings.Split(refusal.Where, ".")...); field != nil {
		at = field
	}
	if at == nil || at.Line() == 0 {
		at = template
	}
	return &manifest.Error{Line: at.Line(), Reason: err.Error()}
}

func (m *migration) refuse(f *file, o object, err error) {
	m.refused++
	line, reason := 0, err.Error()
	if where, ok := errors.AsType[*manifest.Error](err); ok {
		line, reason = where.Line, where.Reason
	}
	m.report(f, o, line, "refused: "+reason)
}

// report adds a message for the end of the run: FILE:LINE: KIND NAMESPACE/NAME: TEXT.
func (m *migration) report(f *file, o object, line int, text string) {
	where := f.name
	if line > 0 {
		where = fmt.Sprintf("%s:%d", f.name, line)
	}
	if o.kind != "" {
		where += ": " + o.String()
	}
	m.messages = append(m.messages, oneLine(where+": "+text))
}

// oneLine replaces line breaks and control characters, which names in manifests may contain: they
// could forge a message, or control the terminal.
func oneLine(message string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(message, "?"))
}
