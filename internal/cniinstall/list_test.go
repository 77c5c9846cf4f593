package cniinstall

import (
	"encoding/json"
	"strings"
	"testing"
)

const (
	kind  = "imds-cni"
	entry = `{"type":"imds-cni","capabilities":{"io.kubernetes.cri.pod-annotations":true}}`
)

// The lists of Azure CNI, and others of different layouts. The first three have the form of the
// files on nodes of AKS.
var lists = map[string]string{
	"azure": `{
  "cniVersion": "0.3.0",
  "name": "azure",
  "plugins": [
    {
      "type": "azure-vnet",
      "mode": "transparent",
      "ipam": {"type": "azure-vnet-ipam"}
    },
    {
      "type": "portmap",
      "capabilities": {"portMappings": true},
      "snat": true
    }
  ]
}
`,
	"cilium": "{\n\t\"cniVersion\": \"0.3.1\",\n\t\"name\": \"cilium\",\n\t\"plugins\": [\n\t\t{\n\t\t\t\"type\": \"cilium-cni\",\n\t\t\t\"ipam\": {\n\t\t\t\t\"type\": \"azure-ipam\"\n\t\t\t}\n\t\t}\n\t]\n}",
	"swift":  `{"cniVersion":"0.3.0","name":"azure","plugins":[{"type":"azure-vnet","ipam":{"type":"azure-cns"}},{"type":"portmap","snat":true}]}`,
	"spaces": "\r\n{ \"plugins\" : [ {\"type\":\"bridge\", \"x\": [1, {\"plugins\": [{\"type\":\"imds-cni\"}]}]} , {\"type\":\"tuning\"} ] , \"name\":\"n\", \"big\": 123456789012345678901234567890, \"html\": \"<&>\", \"escape\": \"\\u00e9\" }\r\n",
	"1.1.0":  `{"cniVersion":"1.1.0","cniVersions":["1.0.0","1.1.0"],"name":"n","disableCheck":true,"plugins":[{"type":"bridge"}]}`,
}

// TestWith: the entry is the last plugin, all other bytes are unchanged, and the removal of the
// entry restores the text.
func TestWith(t *testing.T) {
	for name, text := range lists {
		t.Run(name, func(t *testing.T) {
			l := mustParse(t, text)
			if l.has(kind, []byte(entry)) || l.mentions(kind) {
				t.Error("it seems to have the entry before")
			}
			with, err := l.with(kind, []byte(entry))
			if err != nil {
				t.Fatal(err)
			}
			edited := mustParse(t, string(with))
			if !edited.has(kind, []byte(entry)) || edited.plugins[len(edited.plugins)-1].kind != kind {
				t.Errorf("the entry is not the last plugin:\n%s", with)
			}
			if before, after, found := strings.Cut(string(with), entry); !found || !strings.HasPrefix(text, strings.TrimRight(before, ", \t\r\n")) || !strings.HasSuffix(text, after) {
				t.Errorf("other bytes changed:\n%s", with)
			}
			again, err := edited.with(kind, []byte(entry))
			if err != nil || string(again) != string(with) {
				t.Errorf("a second time: got %v,\n%s\nwant\n%s", err, again, with)
			}
			without, err := edited.without(kind)
			if err != nil || string(without.text) != text {
				t.Errorf("without: got %v, %s, want %s", err, without.text, text)
			}
		})
	}
}

func mustParse(t *testing.T, text string) *list {
	t.Helper()
	l, err := parseList([]byte(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return l
}

func TestWithIndentation(t *testing.T) {
	with, err := mustParse(t, lists["azure"]).with(kind, []byte(entry))
	if want := "      \"snat\": true\n    },\n    " + entry + "\n  ]\n}\n"; err != nil || !strings.HasSuffix(string(with), want) {
		t.Errorf("got %v,\n%s\nwant the end\n%s", err, with, want)
	}
}

// TestReplaced: entries of the same type are replaced, wherever they are and however many.
func TestReplaced(t *testing.T) {
	const other = `{"type":"imds-cni","exemptUIDs":[1]}`
	for plugins, want := range map[string]string{
		`{"type":"a"}, ` + other: `{"type":"a"}, ` + entry,
		other + `, {"type":"a"}`: `{"type":"a"},` + entry,
		other + `, ` + entry + ` ,{"type":"a"}, ` + entry + `, {"type":"b"}`:     `{"type":"a"}, {"type":"b"}, ` + entry,
		`{"type":"a"},` + entry + `,` + entry:                                    `{"type":"a"},` + entry,
		`{"type":"a"},` + other + `, ` + other + `, {"type":"b"}, ` + other:      `{"type":"a"}, {"type":"b"}, ` + entry,
		`{"type":"a"}, {"type":"b"},  ` + other + `,{"type":"c"} , ` + other:     `{"type":"a"}, {"type":"b"},{"type":"c"},` + entry,
		`{"type":"a"}, ` + strings.Replace(entry, "true", "false", 1):            `{"type":"a"}, ` + entry,
		`{"type":"a"}, ` + strings.Replace(entry, "}}", `},"exemptUIDs":[]}`, 1): `{"type":"a"}, ` + entry,
	} {
		l := mustParse(t, `{"name":"n","plugins":[`+plugins+`]}`)
		if l.has(kind, []byte(entry)) || !l.mentions(kind) {
			t.Errorf("%s: counts as valid", plugins)
		}
		got, err := l.with(kind, []byte(entry))
		// White space and commas are those of the plugins that stay.
		if compact(t, got) != compact(t, []byte(`{"name":"n","plugins":[`+want+`]}`)) || err != nil {
			t.Errorf("%s: got %v, %s, want %s", plugins, err, got, want)
		}
	}
}

func compact(t *testing.T, text []byte) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	short, _ := json.Marshal(v)
	return string(short)
}

// TestHas: an entry with another order of keys or white space is the same, and one that another
// plugin follows is valid.
func TestHas(t *testing.T) {
	for plugins, want := range map[string]bool{
		`{"type":"a"},` + entry: true,
		`{"type":"a"},{ "capabilities": {"io.kubernetes.cri.pod-annotations" :true}, "type":"imds-cni"}`: true,
		`{"type":"a"},` + entry + `,{"type":"b"}`:                                                        true,
		entry + `,{"type":"a"}`: false, // the first
		entry:                   false,
		`{"type":"a"}`:          false,
	} {
		if got := mustParse(t, `{"name":"n","plugins":[`+plugins+`]}`).has(kind, []byte(entry)); got != want {
			t.Errorf("%s: got %t, want %t", plugins, got, want)
		}
	}
}

func TestOnlyOurs(t *testing.T) {
	l := mustParse(t, `{"name":"n","plugins":[`+entry+`]}`)
	if _, err := l.with(kind, []byte(entry)); err == nil || !strings.Contains(err.Error(), "no other plugin") {
		t.Errorf("with: got %v", err)
	}
	if _, err := l.without(kind); err == nil {
		t.Error("without: got no error")
	}
}

func TestInvalidLists(t *testing.T) {
	const plugins = `"plugins":[{"type":"a"}]`
	for text, want := range map[string]string{
		"":                                    "its JSON ends too early",
		"{":                                   "its JSON ends too early",
		"[]":                                  "must be a JSON object",
		"null":                                "must be a JSON object",
		"\xef\xbb\xbf{}":                      "invalid character",
		`{"name":"n"}`:                        "has no plugins",
		`{` + plugins + `}`:                   "has no name",
		`{"name":"",` + plugins + `}`:         "name must be a text",
		`{"name":1,` + plugins + `}`:          "name must be a text",
		`{"name":"n","plugins":[]}`:           "has no plugins",
		`{"name":"n","plugins":{}}`:           "instead of [",
		`{"name":"n","plugins":[1]}`:          "plugin without a type",
		`{"name":"n","plugins":[{}]}`:         "plugin without a type",
		`{"name":"n","plugins":[null]}`:       "plugin without a type",
		`{"name":"n","plugins":[{"type":1}]}`: "plugin without a type",
		`{"name":"n",` + plugins + `,` + plugins + `}`:             `"plugins" twice`,
		`{"name":"n",` + plugins + `}{}`:                           "text after its end",
		`{"name":"n",` + plugins + `,}`:                            "invalid character",
		`{"name":"n",` + plugins + `,"cniVersion":"9.0.0"}`:        `"9.0.0" is not supported`,
		`{"name":"n",` + plugins + `,"cniVersion":1}`:              "cniVersion must be a text",
		`{"name":"n",` + plugins + `,"cniVersions":["1.0.0","x"]}`: `"x" is not supported`,
		`{"name":"n",` + plugins + `,"cniVersions":"1.0.0"}`:       "must be a list of texts",
		`{"name":"n","plugins":[{"type":"a"}`:                      "its JSON ends too early",
		`{"name":"n","plugins":[{"type":"a"}]`:                     "its JSON ends too early",
		`{"type":"bridge","name":"n","bridge":"cni0"}`:             "has no plugins",
	} {
		if _, err := parseList([]byte(text)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line with %q", text, err, want)
		}
	}
}

// FuzzList: whatever the text, an edit keeps a list valid, and its removal restores the text.
func FuzzList(f *testing.F) {
	for _, text := range lists {
		f.Add([]byte(text))
	}
	f.Add([]byte(`{"name":"n","plugins":[` + entry + `, {"type":"a"},` + entry + `]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := parseList(text)
		if err != nil {
			return
		}
		with, err := l.with(kind, []byte(entry))
		if err != nil {
			return // it has no other plugin
		}
		edited, err := parseList(with)
		if err != nil || !edited.has(kind, []byte(entry)) {
			t.Fatalf("%q became %q: %v", text, with, err)
		}
		without, err := edited.without(kind)
		if err != nil || !l.mentions(kind) && string(without.text) != string(text) {
			t.Fatalf("%q became %q, and then %q: %v", text, with, without.text, err)
		}
	})
}
