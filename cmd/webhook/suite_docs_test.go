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

var update = flag.Bool("update", false, "write the tables of flags into docs/webhook.md")

// TestDocumentedFlags checks that the tables in docs/webhook.md have the flags of --help. make docs
// writes them.
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
	want := block.ReplaceAllString(string(text), "${1}"+flagTables()+"\n${2}")
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

// flagTables returns a table for each group of flags.
func flagTables() string {
	var cfg config
	var b strings.Builder
	set := newFlags(&cfg)
	set.VisitGroups(func(title string, flags *pflag.FlagSet) {
		fmt.Fprintf(&b, "\n**%s**\n\n| flag | variable | default | meaning |\n|---|---|---|---|\n", title)
		flags.VisitAll(func(f *pflag.Flag) {
			variable, value := "`"+set.Variable(f.Name)+"`", "`"+f.DefValue+"`"
			if f.Name == "version" {
				variable, value = "", ""
			}
			if f.DefValue == "" {
				value = ""
			}
			fmt.Fprintf(&b, "| `--%s` | %s | %s | %s |\n", f.Name, variable, value, strings.ReplaceAll(f.Usage, "`", ""))
		})
	})
	return b.String()
}
