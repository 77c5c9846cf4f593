package survey_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/survey"
)

// corpus is the example cluster.
const corpus = "../../cmd/imds-migrate/testdata/cluster"

// objects returns the objects of the example cluster, as an export has them: with a UID and a status.
func objects(t *testing.T) []map[string]any {
	t.Helper()
	files, err := filepath.Glob(corpus + "/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatal("no example cluster", err)
	}
	var all []map[string]any
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(text), "---\n") {
			var object map[string]any
			if err := yaml.Unmarshal([]byte(document), &object); err != nil {
				t.Fatal(err)
			}
			if object == nil {
				continue
			}
			object["metadata"].(map[string]any)["uid"] = fmt.Sprintf("00000000-0000-4000-8000-%012d", len(all))
			if object["status"] == nil {
				object["status"] = map[string]any{}
			}
			all = append(all, object)
		}
	}
	return all
}

// list returns a list as kubectl get prints it, in YAML or JSON.
func list(t *testing.T, all []map[string]any, json bool) []byte {
	t.Helper()
	text, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": all, "metadata": map[string]any{"resourceVersion": ""}})
	if err == nil && json {
		text, err = yaml.YAMLToJSON(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// read reads one file and returns what is in the survey, as text.
func read(t *testing.T, texts ...[]byte) (*survey.Survey, string) {
	t.Helper()
	s := survey.New(survey.Config{Secrets: true})
	for _, text := range texts {
		if err := s.ReadFile("dump.yaml", bytes.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	s.Finish()
	return s, describe(s)
}

func describe(s *survey.Survey) string {
	var lines []string
	for _, w := range s.AllWorkloads() {
		lines = append(lines, fmt.Sprintf("%v %v %d %v", w.Ref, w.Template.Spec.ServiceAccountName, w.Pods, w.Template.Labels))
	}
	for ref, o := range s.Objects {
		lines = append(lines, fmt.Sprintf("%v %v", ref, o.Body))
	}
	for key, a := range s.Accounts {
		lines = append(lines, fmt.Sprintf("%v %v", key, a.Annotations))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestForms reads the same objects in all forms of an export.
func TestForms(t *testing.T) {
	all := objects(t)
	s, want := read(t, list(t, all, false))
	if len(s.Workloads) < 50 || len(s.Objects) < 50 || len(s.Unread) > 0 {
		t.Fatalf("%d workloads, %d objects, unread %v", len(s.Workloads), len(s.Objects), s.Unread)
	}
	var documents, stream bytes.Buffer
	for _, object := range all {
		text, _ := yaml.Marshal(object)
		fmt.Fprintf(&documents, "--- # an object\n%s", text)
		line, _ := yaml.YAMLToJSON(text)
		fmt.Fprintf(&stream, "%s\n", line)
	}
	indented := strings.ReplaceAll(string(list(t, all, false)), "\n", "\n  ")
	indented = strings.NewReplacer("\n  items:", "\nitems:", "\n  kind: List", "\nkind: List", "\n  metadata:\n    resourceVersion: \"\"\n  ", "\nmetadata: {}\n").Replace(indented)
	for form, text := range map[string]string{
		"JSON list": string(list(t, all, true)), "documents": documents.String(), "JSON stream": stream.String(),
		"CRLF": strings.ReplaceAll(string(list(t, all, false)), "\n", "\r\n"), "byte order mark": "\xef\xbb\xbf" + string(list(t, all, false)),
		"indented items": indented, "list in a list": `{"kind": "List", "apiVersion": "v1", "items": [` + string(list(t, all, true)) + `]}`,
		"a copy of an object": string(list(t, append(slices.Clone(all), all[3]), true)),
	} {
		if _, got := read(t, []byte(text)); got != want {
			t.Errorf("%s: the survey differs", form)
		}
	}
	if s, _ := read(t, []byte("{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n---\n{ apiVersion: v1, kind: Namespace, metadata: {name: b}}\n")); len(s.Namespaces) != 2 {
		t.Errorf("YAML in brackets: got %v", s.Namespaces)
	}
	half := len(all) / 2
	if _, got := read(t, list(t, all[half:], false), list(t, all[:half], false)); got != want {
		t.Error("two files in another order: the survey differs")
	}
}

// TestCut checks that no part of a dump is taken for the whole.
func TestCut(t *testing.T) {
	all := objects(t)[:60]
	for form, text := range map[string][]byte{"YAML": list(t, all, false), "JSON": list(t, all, true)} {
		end := bytes.LastIndex(text, []byte("kind: List")) // what follows are no objects
		if form == "JSON" {
			end = len(text) - 1
		}
		for n := 100; n < end; n += 100 + n%197 {
			err := survey.New(survey.Config{}).ReadFile("dump.yaml", bytes.NewReader(text[:n]))
			if err == nil || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "dump.yaml") {
				t.Fatalf("%s: the first %d of %d bytes: got %v, want an error of one line", form, n, len(text), err)
			}
		}
	}
	var documents bytes.Buffer
	for _, object := range all {
		text, _ := yaml.Marshal(object)
		fmt.Fprintf(&documents, "---\n%s", text)
	}
	// The last object without its status, which the API server writes after the spec.
	whole := documents.String()
	cut := whole[:strings.LastIndex(whole, "    spec:\n")]
	if err := survey.New(survey.Config{}).ReadFile("dump.yaml", strings.NewReader(cut)); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("a document without its end: got %v", err)
	}
}

// TestBadFiles checks the message for each bad input.
func TestBadFiles(t *testing.T) {
	for text, want := range map[string]string{
		"\xff\xfek\x00":              "dump.yaml: the file is UTF-16: save it as UTF-8",
		"kind: {{ .Values.kind }}\n": "dump.yaml:1: a template, not a manifest: render it first (helm template … | imds-migrate plan -f -)",
		"a: b: c\n":                  "dump.yaml:1: invalid YAML: mapping values are not allowed in this context",
		"{\"kind\": ":                "dump.yaml: the file is cut off: export it again",
		"{\"kind\": oops}":           "dump.yaml: byte 8: invalid JSON: invalid character 'o' looking for beginning of value",
		"[1]":                        "dump.yaml: byte 1: invalid JSON: must be an object",
		"{\"items\": {}}":            "dump.yaml: byte 11: invalid JSON: items must be a list",
	} {
		err := survey.New(survey.Config{}).ReadFile("dump.yaml", strings.NewReader(text))
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	for _, text := range []string{"", "\n\n", "# nothing\n", "items: []\nkind: List\n", `{"items": null, "kind": "List"}`, "kind: Values\nkey: 1\n"} {
		s := survey.New(survey.Config{})
		if err := s.ReadFile("dump.yaml", strings.NewReader(text)); err != nil || s.HasWorkloads() {
			t.Errorf("%q: got %v, %t", text, err, s.HasWorkloads())
		}
	}
}

// TestMalformed checks that objects that cannot be decoded, and versions that are unknown, are listed in a
// bounded number of lines.
func TestMalformed(t *testing.T) {
	var text strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Event\nmetadata: {name: e%d}\nmessage: nonsense\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p%[1]d}\nspec: nonsense\n", i)
	}
	text.WriteString("---\napiVersion: keda.sh/v9\nkind: TriggerAuthentication\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Pod\nmetadata: {}\nspec: {}\n")
	s, _ := read(t, []byte(text.String()))
	if s.Ignored != 10000 || len(s.Unread) > 20 || s.HasWorkloads() {
		t.Errorf("ignored %d, unread %d, workloads %t", s.Ignored, len(s.Unread), s.HasWorkloads())
	}
	for _, want := range []survey.Unread{
		{Code: survey.Malformed, What: "Pod default/p0", Why: "json: cannot unmarshal string into Go struct field .spec of type v1.PodSpec"},
		{Code: survey.Malformed, What: "9991 more objects", Why: "they cannot be decoded either"},
		{Code: survey.Version, What: "triggerauthentications.keda.sh", Why: "version v9 is unknown to this program, which knows v1alpha1"},
	} {
		if !slices.ContainsFunc(s.Unread, func(u survey.Unread) bool { return u.Code == want.Code && u.What == want.What }) {
			t.Errorf("missing: %v in %v", want, s.Unread)
		}
	}
}
