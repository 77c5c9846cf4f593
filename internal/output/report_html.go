package output

import (
	_ "embed"
	"html/template"
	"io"
	"time"

	"imds-oidc-proxy/internal/report"
)

//go:embed report.html
var reportPage string

var reportTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"stamp": stamp, "headline": headline, "asked": askedText, "askers": askers, "last": lastAsked, "observed": observedText,
	"problems": problems, "share": share,
	"left": func(c report.Counts) int { return c.Needed + c.Waiting + c.Unknown },
	"days": func(seconds int64) string { return report.Days(time.Duration(seconds) * time.Second) },
}).Parse(reportPage))

// part is one piece of a bar.
type part struct {
	Class, Name string
	Number      int
	Percent     float64
}

// share returns the pieces of a bar that have a width, in the order of the way to the end.
func share(c report.Counts) []part {
	all := c.Direct + c.CanGo + c.Waiting + c.Unknown + c.Needed
	var parts []part
	for _, p := range []part{
		{Class: "direct", Name: "without a sidecar", Number: c.Direct}, {Class: "cango", Name: "sidecar can go", Number: c.CanGo},
		{Class: "waiting", Name: "waiting", Number: c.Waiting}, {Class: "unknown", Name: "not known", Number: c.Unknown}, {Class: "needed", Name: "sidecar needed", Number: c.Needed},
	} {
		if p.Number > 0 {
			p.Percent = float64(p.Number) / float64(all) * 100
			parts = append(parts, p)
		}
	}
	return parts
}

// reportHTML writes one page that needs nothing else: no script, no font and no image from elsewhere.
func reportHTML(w io.Writer, r *report.Report) error { return reportTemplate.Execute(w, r) }
