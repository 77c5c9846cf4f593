package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode"

	"imds-oidc-proxy/internal/manifest"
)

// migration is one run over all files. It continues after a refusal, so that one run reports all
// refusals. It holds one document at a time.
type migration struct {
	options    options
	accounts   accounts
	identities identities
	patches    patches
	out        *spool
	messages   io.Writer

	refused                     int
	changed, unchanged, skipped int  // workloads
	matched                     bool // --selector matches a workload
}

// document is a document of a file.
type document struct {
	file *file
	text []byte
	*manifest.Document
	objects []object
}

// edit sets the changed text of each file.
func (m *migration) edit(files []*file, stdin io.Reader) error {
	m.accounts, m.patches = accounts{}, patches{}
	m.readAccounts(stdin)
	m.readIdentities(stdin)
	if err := m.lookAhead(files); err != nil {
		return err
	}
	for _, f := range files {
		start := m.out.size
		if err := m.documents(f, everyPart, m.document); err != nil {
			return err
		}
		f.after = m.out.after(start)
	}
	return nil
}

// lookAhead collects what workloads before it depend on: service accounts, which may come after the
// workload that uses them, and the names of the files that are kustomize patches. The documents are
// parsed again later, and errors are reported then.
func (m *migration) lookAhead(files []*file) error {
	ahead := &migration{options: m.options, accounts: accounts{}, patches: m.patches, messages: io.Discard}
	for _, f := range files {
		wanted := func(text []byte) bool {
			return isKustomization(f) || bytes.Contains(text, []byte("ServiceAccount")) || bytes.ContainsRune(text, '\\')
		}
		if err := ahead.documents(f, wanted, ahead.collect); err != nil {
			return err
		}
	}
	for _, account := range ahead.accounts {
		m.accounts.apply(account)
	}
	return nil
}

// collect adds the service accounts of a document, and the patches of a kustomization. Of two
// accounts with the same name the later one counts, as with kubectl apply.
func (m *migration) collect(d document) error {
	m.patches.collect(d)
	for _, o := range d.objects {
		account, err := o.serviceAccount()
		if err != nil {
			m.refuse(d.file, o, err)
		} else if account != nil {
			m.accounts[account.Namespace+"/"+account.Name] = account
		}
	}
	return nil
}

func everyPart([]byte) bool { return true }

// documents calls do for each wanted document of a file. A document that cannot be parsed is refused.
func (m *migration) documents(f *file, wanted func(text []byte) bool, do func(document) error) error {
	in, err := f.open()
	if err != nil {
		return err
	}
	defer in.Close()
	buffered := bufio.NewReader(in)
	if isUTF16(buffered) {
		m.refuse(f, object{}, errors.New("the file is UTF-16: save it as UTF-8"))
		return nil
	}
	for reader := manifest.NewReader(buffered); ; {
		part, err := reader.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", f.name, err)
		case !wanted(part.Text):
			continue
		}
		d, err := parsed(part)
		if err != nil {
			m.refuse(f, object{}, err)
			continue
		}
		if err := do(document{file: f, text: part.Text, Document: d, objects: m.objects(f, d.Root(), object{})}); err != nil {
			return err
		}
	}
}

// parsed returns a document, or an error if it is not a manifest.
func parsed(part manifest.Part) (*manifest.Document, error) {
	d, err := manifest.Parse(part)
	if err != nil || d.Root() != nil && d.Root().HasOddKey() {
		err = notManifest(part, err)
	}
	return d, err
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

// document writes a document with its changes to the output.
func (m *migration) document(d document) error {
	for _, o := range d.objects {
		m.object(d.file, o)
	}
	text, err := d.Text()
	if err != nil {
		m.refuse(d.file, object{}, err)
	}
	d.file.changed = d.file.changed || !bytes.Equal(text, d.text)
	_, err = m.out.Write(text)
	return err
}

func (m *migration) refuse(f *file, o object, err error) {
	m.refused++
	line, reason := 0, err.Error()
	if where, ok := errors.AsType[*manifest.Error](err); ok {
		line, reason = where.Line, where.Reason
	}
	m.report(f, o, line, "refused: "+reason)
}

func (m *migration) warn(f *file, o object, line int, text string) {
	m.report(f, o, line, "warning: "+text)
}

// report writes a message: FILE:LINE: KIND NAMESPACE/NAME: TEXT.
func (m *migration) report(f *file, o object, line int, text string) {
	where := f.name
	if line > 0 {
		where = fmt.Sprintf("%s:%d", f.name, line)
	}
	if o.kind != "" {
		where += ": " + o.String()
	}
	fmt.Fprintln(m.messages, oneLine(where+": "+text))
}

// summary writes warnings about the run as a whole, and the numbers of workloads.
func (m *migration) summary() {
	switch {
	case m.changed+m.unchanged+m.skipped == 0:
		fmt.Fprintln(m.messages, "imds-migrate: warning: the manifests contain no workload")
	case m.options.selectorText != "" && !m.matched:
		fmt.Fprintf(m.messages, "imds-migrate: warning: --selector %q matches no workload\n", m.options.selectorText)
	}
	verb := "injected"
	if m.options.uninject {
		verb = "uninjected"
	}
	fmt.Fprintf(m.messages, "%d %s, %d unchanged, %d skipped\n", m.changed, verb, m.unchanged, m.skipped)
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
