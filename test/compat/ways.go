package main

import (
	"fmt"
	"strings"
)

// way is a way in which a client finds the proxy. It is described by the start of the names of
// its scenarios.
type way string

const (
	podHostWay    way = "direct"
	appServiceWay way = "app-service"
	bothWay       way = "both"
)

// scenarios returns the scenarios that count in the summary of a way, the most important one first.
func (w way) scenarios() []scenario {
	var all []scenario
	for _, s := range scenarios() {
		if strings.HasPrefix(s.name, string(w)) && !s.aside {
			all = append(all, s)
		}
	}
	return all
}

// markAll returns the text for all cells of a way together: the worst sign, and the notes of all
// cells that are not as usual. If the first scenario works and another one does not, the way works
// sometimes.
func (r *row) markAll(w way, l library, notes *[]string) string {
	sign, references := "–", ""
	for _, s := range w.scenarios() {
		c := r.cells[s.name]
		switch got := c.sign(); {
		case got == "–":
			continue
		case sign == "–" || got == "not tried":
			sign = got
		case sign == "✓" && got != "✓":
			sign = "(✓)"
		}
		if c.sign() != "✓" && notes != nil {
			if reference := c.reference(l, notes); !strings.Contains(references, reference) {
				references += reference
			}
		}
	}
	return sign + references
}

const waysHeading = `
## Redirect or variables

With the redirect, every client finds the proxy. In a pod without it, a client must be told by variables:
` + "`AZURE_POD_IDENTITY_AUTHORITY_HOST`" + `, or the four of App Service (` + "`IDENTITY_ENDPOINT`" + `, ` + "`IDENTITY_HEADER`" + `, ` + "`MSI_ENDPOINT`" + `,
` + "`MSI_SECRET`" + `). Injection with ` + "`redirect: none`" + ` sets all five; [injection.md](injection.md#without-a-redirect) has the
details, [migration.md](migration.md#no-redirect) the choice. A client with ✗ needs the redirect, or a setting of
its own. The notes are in the tables below.

`

// writeWays writes the table for the choice between the redirect and the variables.
func (r report) writeWays(page *strings.Builder) {
	page.WriteString(waysHeading)
	writeHeader(page, "client", []string{"redirect", "`AZURE_POD_IDENTITY_AUTHORITY_HOST`", "App Service", "both (`redirect: none`)"})
	r.each(func(c client, l library, tried *row) {
		fmt.Fprintf(page, "| %s | %s | %s | %s | %s |\n", r.title(c, l), tried.cells["default"].sign(),
			tried.markAll(podHostWay, l, nil), tried.markAll(appServiceWay, l, nil), tried.markAll(bothWay, l, nil))
	})
}

// writeVariables writes the scenarios in which variables take the place of the redirect.
func (r report) writeVariables(page *strings.Builder) {
	page.WriteString("\n## Without a redirect\n\nIn a network namespace without redirect, with a decoy at the metadata address. ✓ means that the decoy got no request.\n\n")
	for _, s := range scenariosOf(variablesTable) {
		fmt.Fprintf(page, "- **%s**: %s.\n", s.title, s.about)
	}
	page.WriteString("\n")
	writeHeader(page, "client", titles(variablesTable))
	var notes []string
	r.each(func(c client, l library, tried *row) {
		fmt.Fprintf(page, "| %s |", r.title(c, l))
		for _, s := range scenariosOf(variablesTable) {
			fmt.Fprintf(page, " %s |", mark(tried.cells[s.name], l, &notes))
		}
		page.WriteString("\n")
	})
	writeNotes(page, notes)
}
