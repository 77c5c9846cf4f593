package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write the table of flags into docs/webhook.md")

// TestDocumentedFlags: the table in the docs is what --help says; make docs writes it.
func TestDocumentedFlags(t *testing.T) {
	const file = "../../docs/webhook.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile(`(?s)(<!-- generated: webhook flags -->\n).*?(<!-- end -->)`)
	if !block.Match(text) {
		t.Fatalf("%s has no block of flags", file)
	}
	want := block.ReplaceAllString(string(text), "${1}\n"+flagTable()+"\n${2}")
	if want == string(text) {
		return
	}
	if !*update {
		t.Fatalf("%s is stale: run make docs", file)
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func flagTable() string {
	var cfg config
	var b strings.Builder
	b.WriteString("| flag | variable | default | meaning |\n|---|---|---|---|\n")
	flags := newFlags(&cfg)
	flags.VisitAll(func(f *pflag.Flag) {
		twin, fallback := "`"+flags.Variable(f.Name)+"`", "`"+f.DefValue+"`"
		if f.Name == "version" {
			twin, fallback = "", ""
		}
		if f.DefValue == "" {
			fallback = ""
		}
		fmt.Fprintf(&b, "| `--%s` | %s | %s | %s |\n", f.Name, twin, fallback, strings.ReplaceAll(f.Usage, "`", ""))
	})
	return b.String()
}
