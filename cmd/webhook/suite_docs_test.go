package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
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

// TestDocumentedMetrics checks that docs/webhook.md has each metric and each result, and no other
// metric. The alerts of the chart are compared with that page.
func TestDocumentedMetrics(t *testing.T) {
	page, err := os.ReadFile("../../docs/webhook.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(imds_oidc_proxy_webhook_[a-z_]+)` (.*)$").FindAllStringSubmatch(string(page), -1) {
		documented[row[1]] = row[2]
	}
	m := newMetrics()
	for _, result := range []string{resultInjected, resultUnchanged, resultSkipped, resultRefused, resultError} {
		if !strings.Contains(documented["imds_oidc_proxy_webhook_admissions_total"], "`"+result+"`") {
			t.Errorf("the result %q is missing", result)
		}
		m.observe(result, 0) // a histogram without observations is not gathered
	}
	m.watches.WithLabelValues("secret")
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.collectors()...)
	families, err := registry.Gather()
	if err != nil || len(families) == 0 {
		t.Fatal("no metrics", err)
	}
	for _, family := range families {
		if _, found := documented[family.GetName()]; !found {
			t.Errorf("%s is missing", family.GetName())
		}
		delete(documented, family.GetName())
	}
	for name := range documented {
		t.Errorf("%s is no metric of the webhook", name)
	}
}
