// Package output writes a plan: for people as a table, in Markdown and as CSV; for programs as JSON
// and YAML; and what has to be created in Azure as a script or in the language of a tool.
//
//	err := output.Write(os.Stdout, p, output.Config{Format: "table"})
//
// It writes what the plan says and decides nothing. The same plan gives the same bytes.
package output

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/plan"
)

// Config says how a plan is written.
type Config struct {
	// Format is one of [Formats].
	Format string
	// ResourceGroup selects the identities of a Bicep file, which deploys into one resource group.
	ResourceGroup string
	// Provider is the version of the Terraform or Crossplane provider, such as 4.65. Empty: the newest
	// that this package knows.
	Provider string
}

// writers has the function of each format.
var writers = map[string]func(io.Writer, *plan.Plan, Config) error{
	"table": writeTable, "wide": writeWide, "markdown": writeMarkdown, "csv": writeCSV,
	"json": writeJSON, "yaml": writeYAML,
	"az": writeAz, "bicep": writeBicep, "terraform": writeTerraform, "aso": writeASO, "crossplane": writeCrossplane, "patch": writePatch,
}

// Formats are the formats in the order of the documentation.
var Formats = []string{"table", "wide", "json", "yaml", "markdown", "csv", "az", "bicep", "terraform", "aso", "crossplane", "patch"}

// CreatesCredentials reports whether a format is for a tool that creates federated credentials, which
// needs the issuer.
func CreatesCredentials(format string) bool {
	return slices.Contains([]string{"az", "bicep", "terraform", "aso", "crossplane"}, format)
}

// Write writes a plan.
func Write(w io.Writer, p *plan.Plan, config Config) error {
	write, known := writers[config.Format]
	if !known {
		return fmt.Errorf("unknown format %q", config.Format)
	}
	return write(w, p, config)
}

// indentedJSON writes a value as JSON for people.
func indentedJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// writeJSON writes the plan item by item: an encoder would keep several copies of it in memory.
func writeJSON(w io.Writer, p *plan.Plan, _ Config) error {
	out := bufio.NewWriter(w)
	fields := reflect.ValueOf(p).Elem()
	separator := "{"
	for i := range fields.NumField() {
		name := fields.Type().Field(i).Tag.Get("json")
		if name == "" {
			continue // not exported
		}
		fmt.Fprintf(out, "%s\n  %q: ", separator, name)
		separator = ","
		field := fields.Field(i)
		if field.Kind() != reflect.Slice || field.Len() == 0 {
			if err := encodeIndented(out, field.Interface(), "  "); err != nil {
				return err
			}
			continue
		}
		for n := range field.Len() {
			fmt.Fprintf(out, "%s\n    ", []string{",", "["}[max(0, 1-n)])
			if err := encodeIndented(out, field.Index(n).Interface(), "    "); err != nil {
				return err
			}
		}
		out.WriteString("\n  ]")
	}
	out.WriteString("\n}\n")
	return out.Flush()
}

// encodeIndented writes a value without a line break at its end.
func encodeIndented(w io.Writer, value any, prefix string) error {
	text := new(bytes.Buffer)
	encoder := json.NewEncoder(text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent(prefix, "  ")
	if err := encoder.Encode(value); err != nil {
		return err
	}
	_, err := w.Write(bytes.TrimSuffix(text.Bytes(), []byte("\n")))
	return err
}

func writeYAML(w io.Writer, p *plan.Plan, _ Config) error {
	text, err := yaml.Marshal(p)
	if err == nil {
		_, err = w.Write(text)
	}
	return err
}

// lines collects a text.
type lines struct{ strings.Builder }

func (l *lines) add(format string, args ...any) { fmt.Fprintf(l, format+"\n", args...) }

func (l *lines) to(w io.Writer) error {
	_, err := io.WriteString(w, l.String())
	return err
}

// number returns a number with its noun, such as 1 binding or 2 bindings.
func number(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// identityOf returns the identity of a workload for a column.
func identityOf(s plan.Selection) string {
	switch s.State {
	case plan.StateKnown:
		if s.Default != nil && len(s.Others) == 0 {
			return s.Default.String()
		}
		if s.Default != nil {
			return fmt.Sprintf("%s and %d more", s.Default, len(s.Others))
		}
		return number(len(s.Others), "identity", "identities")
	case plan.StateAmbiguous:
		var names []string
		for _, c := range s.Candidates {
			names = append(names, c.String())
		}
		return "ambiguous: " + strings.Join(names, " or ")
	case plan.StateUnknown:
		return "not known"
	}
	return "-"
}

// codesOf returns the codes of a workload for a column: those of its highest severity if it is stopped, and
// those of tools, or of what is to be done although it uses no identity.
func codesOf(w plan.Workload) string {
	stopped := w.Severity == plan.Blocked || w.Severity == plan.Choice
	var codes []string
	for _, f := range w.Findings {
		switch {
		case stopped && f.Severity == w.Severity,
			!stopped && strings.HasPrefix(f.Code, "IMDS2"),
			w.Next.Step == plan.StepNothing && f.Severity != plan.Note:
			codes = append(codes, f.Code)
		}
	}
	if len(codes) == 0 {
		return "-"
	}
	return strings.Join(slices.Compact(codes), ",")
}

// shown reports whether a table has a row for a workload: those that need nothing are counted.
func shown(w plan.Workload) bool {
	return w.Today != plan.ByNothing && w.Today != plan.Unknown || w.Severity != plan.Note
}
