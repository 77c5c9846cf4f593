package output

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"strings"

	"imds-oidc-proxy/internal/report"
)

//go:embed report.html
var reportPage string

var reportTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"stamp": stamp, "asked": askedText, "askers": askers, "last": lastAsked, "observed": observedText, "period": periodText, "pods": podsText, "days": days,
	"next": next, "problems": problems, "notAsked": notAsked, "notRead": notRead, "bar": newBar, "summary": summary, "styleHash": styleHash,
	"few":  func() int { return maxListed / 2 },
	"left": func(c report.Counts) int { return c.Needed + c.Waiting + c.Unknown },
	"all":  func(c report.Counts) int { return c.Needed + c.Waiting + c.Unknown + c.CanGo + c.Direct },
}).Parse(reportPage))

// styleHash returns the hash of the page's style for its Content-Security-Policy: no other style applies.
func styleHash() string {
	_, rest, _ := strings.Cut(reportPage, "<style>")
	style, _, _ := strings.Cut(rest, "</style>")
	sum := sha256.Sum256([]byte(style))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// bar shows the verdicts of some workloads as pieces whose width is their share.
type bar struct {
	// Label is the same as a text.
	Label string
	Parts []part
}

// part is one piece. X and Width are in percent.
type part struct {
	Class, Name string
	Number      int
	X, Width    float64
}

// newBar returns the pieces that have a width, from the workloads that are done to those that need the most work.
func newBar(c report.Counts) bar {
	all := c.Direct + c.CanGo + c.Waiting + c.Unknown + c.Needed
	var b bar
	var names []string
	x := 0.0
	for _, p := range []part{
		{Class: "direct", Name: "without a sidecar", Number: c.Direct}, {Class: "cango", Name: "can go", Number: c.CanGo},
		{Class: "waiting", Name: "waiting", Number: c.Waiting}, {Class: "unknown", Name: "not known", Number: c.Unknown}, {Class: "needed", Name: "needed", Number: c.Needed},
	} {
		if p.Number == 0 {
			continue
		}
		p.X, p.Width = x, float64(p.Number)/float64(all)*100
		x += p.Width
		b.Parts = append(b.Parts, p)
		names = append(names, fmt.Sprintf("%d %s", p.Number, p.Name))
	}
	b.Label = strings.Join(names, ", ")
	return b
}

// summary says in one sentence how far the migration is.
func summary(r *report.Report) string {
	s := r.Summary
	all, left := s.Workloads+s.Direct, s.Needed+s.Waiting+s.Unknown
	switch {
	case all == 0:
		return "No workload has the sidecar, and none uses workload identity."
	case s.Workloads == 0:
		return "Done: no workload has the sidecar; " + number(s.Direct, "workload uses", "workloads use") + " workload identity without it."
	case left == 0:
		return fmt.Sprintf("All %s can go.", number(s.CanGo, "sidecar", "sidecars"))
	}
	return fmt.Sprintf("%d of %s left: %d still need the sidecar, %d wait until nobody has asked for long enough, %d are not known.",
		left, number(all, "workload is", "workloads are"), s.Needed, s.Waiting, s.Unknown)
}

// reportHTML writes one page that needs nothing else: no script, no font and no image from elsewhere.
func reportHTML(w io.Writer, r *report.Report) error { return reportTemplate.Execute(w, r) }
