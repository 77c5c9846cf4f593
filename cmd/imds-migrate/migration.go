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

// migration is one run over all files: what is refused in one does not keep the
// others from being looked at.
type migration struct {
	options  options
	accounts accounts
	messages []string
	refused  int
}

// document is one of a file.
type document struct {
	file *file
	*manifest.Document
	objects []object
}

// edit leaves in each file what it is to become.
func (m *migration) edit(files []*file, stdin io.Reader) {
	m.accounts = accounts{}
	m.readAccounts(stdin)
	var documents []document
	for _, f := range files {
		documents = append(documents, m.parse(f)...)
	}
	// All of them first: a service account may stand behind what uses it.
	for _, d := range documents {
		m.collect(d)
	}
	for _, d := range documents {
		m.document(d)
	}
}

func (m *migration) parse(f *file) []document {
	if isUTF16(f.text) {
		m.refuse(f, object{}, errors.New("UTF-16: save it as UTF-8"))
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

// isUTF16 tells what PowerShell's > writes, by its mark.
func isUTF16(text []byte) bool {
	return bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff"))
}

var templateAction = regexp.MustCompile(`\{\{.*\}\}`)

// notManifest tells templates from what is no YAML for another reason. Odd keys alone
// are nothing against a document.
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
	reason := fromNode(o)
	if reason == "" && !m.options.uninject && m.selected(o) {
		if err := addMarks(template); err != nil {
			return err
		}
	}
	if !m.concerned(template) {
		return nil
	}
	if reason != "" {
		m.say(f, o, template.Line(), "warning: "+reason)
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
		err = errors.Join(err, template.Apply(unmarkings(template)))
	}
	return err
}

func (m *migration) inject(f *file, o object, template *manifest.Node, pod *corev1.Pod) error {
	account, warning := m.account(pod)
	if warning != "" && pod.Labels[inject.UseLabel] == "true" {
		m.say(f, o, template.Line(), "warning: "+warning)
	}
	result, err := inject.Pod(pod, account, m.options.config)
	if err != nil {
		return err
	}
	lost, err := wayBack(pod, result.Patch)
	if err != nil {
		return err
	}
	if lost != "" {
		result.Warnings = append(result.Warnings, lost)
	}
	for _, w := range result.Warnings {
		m.say(f, o, template.Line(), "warning: "+w)
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

// locate adds to an error about a pod the line of the field that it is about, or of the
// pod template where the field is not found.
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
	m.say(f, o, line, "refused: "+reason)
}

// say keeps a line for the end: FILE:LINE: KIND NAMESPACE/NAME: what is to be said.
func (m *migration) say(f *file, o object, line int, what string) {
	where := f.name
	if line > 0 {
		where = fmt.Sprintf("%s:%d", f.name, line)
	}
	if o.kind != "" {
		where += ": " + o.String()
	}
	m.messages = append(m.messages, oneLine(where+": "+what))
}

// oneLine keeps names that manifests bring from breaking lines, and from telling a
// terminal what to do.
func oneLine(message string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(message, "?"))
}
