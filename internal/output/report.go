package output

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/report"
)

// reportWriters has the function of each format of a report.
var reportWriters = map[string]func(io.Writer, *report.Report) error{
	"table": reportTable, "wide": reportWide, "markdown": reportMarkdown, "csv": reportCSV, "json": reportJSON, "yaml": reportYAML, "html": reportHTML,
}

// ReportFormats are the formats of a report in the order of the documentation.
var ReportFormats = []string{"table", "wide", "json", "yaml", "markdown", "csv", "html"}

// WriteReport writes a report in one of [ReportFormats].
func WriteReport(w io.Writer, r *report.Report, format string) error {
	write, known := reportWriters[format]
	if !known {
		return fmt.Errorf("unknown format %q", format)
	}
	return write(w, r)
}

func reportJSON(w io.Writer, r *report.Report) error {
	return indentedJSON(w, r)
}

func reportYAML(w io.Writer, r *report.Report) error {
	text, err := yaml.Marshal(r)
	if err == nil {
		_, err = w.Write(text)
	}
	return err
}

func reportTable(w io.Writer, r *report.Report) error {
	l := new(lines)
	var rows [][]string
	for i := range r.Workloads {
		x := &r.Workloads[i]
		rows = append(rows, []string{x.Namespace, x.Key(), podsText(x), askers(x), lastAsked(x), observedText(x), periodText(x), string(x.Verdict)})
	}
	l.report(r, []string{"NAMESPACE", "WORKLOAD", "PODS", "ASKED BY", "LAST ASKED", "OBSERVED", "PERIOD", "SIDECAR"}, rows, maxListed)
	return l.to(w)
}

// reportWide writes everything, with one row for each client.
func reportWide(w io.Writer, r *report.Report) error {
	l := new(lines)
	var rows [][]string
	for i := range r.Workloads {
		x := &r.Workloads[i]
		for _, c := range clientsOr(x) {
			rows = append(rows, []string{
				x.Namespace, x.Key(), podsText(x), cmp.Or(c.Name(), "-"), cmp.Or(c.WorkloadIdentity, "-"), strconv.FormatUint(c.Requests, 10), stampOr(c.FirstSeen), stampOr(c.LastSeen),
				observedText(x), periodText(x), string(x.Verdict), listOr(x.Codes, "-"), listOr(x.Versions, "-"),
			})
		}
	}
	l.report(r, []string{"NAMESPACE", "WORKLOAD", "PODS", "CLIENT", "WORKLOAD IDENTITY", "REQUESTS", "FIRST ASKED", "LAST ASKED", "OBSERVED", "PERIOD", "SIDECAR", "CODES", "VERSION"}, rows, len(r.NotAsked)+len(r.Workloads))
	return l.to(w)
}

// report writes a report for a terminal, with at most limit items in each list.
func (l *lines) report(r *report.Report, head []string, rows [][]string, limit int) {
	l.add("%s", headline(r))
	l.add("%s", askedText(r))
	if len(rows) > 0 {
		l.add("")
		l.table(head, rows)
	}
	for _, s := range sections(r) {
		l.add("\n%s:", s.Title)
		for _, item := range s.Head(limit) {
			l.add("  %s", item)
		}
		if more := s.More(limit); more > 0 {
			l.add("  and %d more: --output=wide", more)
		}
	}
	l.add("\nThe codes are explained in docs/report.md. Nothing was changed.")
}

// maxListed is how many items of a list are shown to a person who has not asked for all.
const maxListed = 20

// section is a list of what to do or to know.
type section struct {
	Title string
	Items []string
}

// Head returns the first items, and More how many there are besides.
func (s section) Head(limit int) []string { return s.Items[:min(limit, len(s.Items))] }

func (s section) More(limit int) int { return max(len(s.Items)-limit, 0) }

// sections returns what to do next, and what else to know, without lists that are empty.
func sections(r *report.Report) []section {
	return append(next(r), filled([]section{{"Requests that fail or are refused", problems(r)}, {"Not asked", notAsked(r)}, {"Not read", notRead(r)}})...)
}

func filled(all []section) []section {
	return slices.DeleteFunc(all, func(s section) bool { return len(s.Items) == 0 })
}

// next returns what to do next, without lists that are empty.
func next(r *report.Report) []section {
	remove, change, wait, find := section{Title: "Remove the sidecar, if no job runs less often than the period"}, section{Title: "Upgrade or change"}, section{Title: "Wait"}, section{Title: "Find out"}
	for _, u := range r.Upgrades {
		change.Items = append(change.Items, fmt.Sprintf("%s: %s (%s: %s)", strings.TrimSpace(u.SDK+" "+u.Version), u.To, number(len(u.Workloads), "workload", "workloads"), some(u.Workloads)))
	}
	waiting := []*report.Workload{}
	for i := range r.Workloads {
		w := &r.Workloads[i]
		name := w.Namespace + " " + w.Key() + ": "
		switch w.Verdict {
		case report.CanGo:
			remove.Items = append(remove.Items, name+"nobody has asked for "+observedText(w)+"; period: "+periodText(w))
		case report.Waiting:
			waiting = append(waiting, w)
		case report.Unknown:
			find.Items = append(find.Items, name+w.Text)
		}
	}
	slices.SortStableFunc(waiting, func(a, b *report.Workload) int { return a.CanGoFrom.Compare(b.CanGoFrom) })
	for _, w := range waiting {
		wait.Items = append(wait.Items, fmt.Sprintf("%s %s: until %s, if nobody asks; observed for %s; period: %s", w.Namespace, w.Key(), w.CanGoFrom.Format(time.DateOnly), observedText(w), periodText(w)))
	}
	return filled([]section{remove, change, wait, find})
}

// some returns the first items of a list.
func some(items []string) string {
	const few = 5
	if len(items) <= few {
		return strings.Join(items, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(items[:few], ", "), len(items)-few)
}

// headline is the result in one sentence.
func headline(r *report.Report) string {
	s := r.Summary
	where := ""
	if r.Cluster != "" {
		where = "Cluster " + r.Cluster + ": "
	}
	if s.Workloads == 0 {
		return where + "no workload has the sidecar; " + number(s.Direct, "workload uses", "workloads use") + " workload identity without it."
	}
	return fmt.Sprintf("%s%s: %d still needed, %d where nobody has asked for long enough yet, %d not known, %d can go. %s workload identity without a sidecar.",
		where, number(s.Workloads, "workload has the sidecar", "workloads have the sidecar"), s.Needed, s.Waiting, s.Unknown, s.CanGo, number(s.Direct, "workload uses", "workloads use"))
}

// askedText says what the result is based on.
func askedText(r *report.Report) string {
	memory := "without Prometheus: a sidecar knows what was asked since its container started"
	if r.Prometheus {
		memory = "and Prometheus for the time before"
	}
	return fmt.Sprintf("Asked at %s: %d of %s, %s. Period of the jobs: %s (--period).", stamp(r.Time), r.Summary.PodsAsked, number(r.Summary.Pods, "pod", "pods"), memory, days(r.PeriodSeconds))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

func stampOr(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return stamp(t)
}

func days(seconds int64) string { return report.Days(time.Duration(seconds) * time.Second) }

// podsText has the number of pods, and how many of them were asked if not all.
func podsText(w *report.Workload) string {
	if w.PodsAsked == w.Pods {
		return strconv.Itoa(w.Pods)
	}
	return fmt.Sprintf("%d of %d", w.PodsAsked, w.Pods)
}

// askers are the clients of a workload for a column.
func askers(w *report.Workload) string {
	var names []string
	for _, c := range w.Clients {
		names = append(names, c.Name())
	}
	if len(names) == 0 {
		return "-"
	}
	return some(names)
}

func clientsOr(w *report.Workload) []report.Client {
	if len(w.Clients) == 0 {
		return []report.Client{{}}
	}
	return w.Clients
}

func lastAsked(w *report.Workload) string {
	var last time.Time
	for _, c := range w.Clients {
		if c.LastSeen.After(last) {
			last = c.LastSeen
		}
	}
	return stampOr(last)
}

func observedText(w *report.Workload) string {
	if w.ObservedSeconds == 0 && w.PodsAsked == 0 {
		return "-"
	}
	return days(w.ObservedSeconds)
}

func periodText(w *report.Workload) string {
	if w.PeriodOf != "" {
		return days(w.PeriodSeconds) + " (" + w.PeriodOf + ")"
	}
	return days(w.PeriodSeconds)
}

// problems lists what fails: the errors of logs, which have the remedy, or the counters.
func problems(r *report.Report) []string {
	var texts []string
	for i := range r.Workloads {
		w := &r.Workloads[i]
		name := w.Namespace + " " + w.Key() + ": "
		if counted := slices.Concat(counts(w.Failed, "AADSTS"), counts(w.Refused, "")); len(counted) > 0 {
			texts = append(texts, name+"since the start "+some(counted)+" (docs/troubleshooting.md)")
		}
		for _, f := range w.Faults {
			texts = append(texts, fmt.Sprintf("%s%s at %s: %s", name, f.Pod, stampOr(f.Time), faultText(f)))
		}
	}
	return texts
}

func faultText(f report.Fault) string {
	text := f.Text
	if f.Identity != "" {
		text = "identity " + f.Identity + ": " + text
	}
	if f.ClientID != "" {
		text = "client ID " + f.ClientID + ": " + text
	}
	if code := fmt.Sprintf("AADSTS%d", f.AADSTS); f.AADSTS != 0 && !strings.Contains(text, code) {
		text += " (" + code + ")"
	}
	if f.Remedy != "" {
		text += " -> " + f.Remedy
	}
	return text
}

func counts(of map[string]int64, prefix string) []string {
	var texts []string
	for _, key := range sortedKeys(of) {
		name := key
		if _, err := strconv.Atoi(key); err == nil {
			name = prefix + key
		}
		texts = append(texts, fmt.Sprintf("%s: %d", name, of[key]))
	}
	return texts
}

func notAsked(r *report.Report) []string {
	var texts []string
	for _, n := range r.NotAsked {
		text := n.Code + " " + n.Namespace + " " + n.Pod + ": " + n.Reason
		if n.Hint != "" {
			text += " -> " + n.Hint
		}
		texts = append(texts, text)
	}
	return texts
}

func notRead(r *report.Report) []string {
	var texts []string
	for _, n := range r.NotRead {
		texts = append(texts, n.Code+" "+n.What+": "+n.Why)
	}
	return texts
}

// inline returns a text for Markdown that is no link, no image and no code: pods have written parts of it.
func inline(text string) string {
	return strings.NewReplacer("[", `\[`, "`", "'").Replace(cell(strings.ReplaceAll(text, `\`, `\\`)))
}

func reportMarkdown(w io.Writer, r *report.Report) error {
	l := new(lines)
	l.add("# Sidecars%s\n", strings.TrimRight(" of "+inline(r.Cluster), " of"))
	l.add("%s\n", inline(headline(&report.Report{Summary: r.Summary})))
	l.add("%s\n", inline(askedText(r)))
	l.add("## Namespaces\n")
	l.head("namespace", "needed", "waiting", "not known", "can go", "without a sidecar")
	for _, n := range r.Namespaces {
		l.inlineRow(n.Name, strconv.Itoa(n.Needed), strconv.Itoa(n.Waiting), strconv.Itoa(n.Unknown), strconv.Itoa(n.CanGo), strconv.Itoa(n.Direct))
	}
	l.add("\n## Workloads\n")
	l.head("namespace", "workload", "pods", "asked by", "last asked", "observed", "period", "sidecar", "what to do", "codes")
	for i := range r.Workloads {
		x := &r.Workloads[i]
		l.inlineRow(x.Namespace, x.Key(), podsText(x), askers(x), lastAsked(x), observedText(x), periodText(x), string(x.Verdict), x.Text, listOr(x.Codes, "-"))
	}
	for _, s := range sections(r) {
		l.add("\n## %s\n", s.Title)
		for _, text := range s.Items {
			l.add("- %s", inline(text))
		}
	}
	l.add("\ndocs/report.md explains the codes.")
	return l.to(w)
}

func (l *lines) inlineRow(cells ...string) {
	for i := range cells {
		cells[i] = inline(cells[i])
	}
	l.add("| %s |", strings.Join(cells, " | "))
}

// reportCSV writes one row for each client of a workload, and one for a workload without clients.
func reportCSV(w io.Writer, r *report.Report) error {
	rows := [][]string{{"namespace", "kind", "name", "pods", "pods_asked", "verdict", "observed_seconds", "period_seconds", "period_of", "can_go_from", "sdk", "version", "workload_identity", "requests", "first_seen", "last_seen", "what_to_do", "codes"}}
	for i := range r.Workloads {
		x := &r.Workloads[i]
		for _, c := range clientsOr(x) {
			rows = append(rows, []string{
				x.Namespace, x.Kind, x.Name, strconv.Itoa(x.Pods), strconv.Itoa(x.PodsAsked), string(x.Verdict), strconv.FormatInt(x.ObservedSeconds, 10), strconv.FormatInt(x.PeriodSeconds, 10), x.PeriodOf, seen(x.CanGoFrom),
				c.SDK, c.Version, c.WorkloadIdentity, strconv.FormatUint(c.Requests, 10), seen(c.FirstSeen), seen(c.LastSeen), cmp.Or(c.Upgrade, x.Text), strings.Join(x.Codes, " "),
			})
		}
	}
	for _, row := range rows {
		for i := range row {
			row[i] = inert(row[i])
		}
	}
	out := csv.NewWriter(w)
	if err := out.WriteAll(rows); err != nil {
		return err
	}
	return out.Error()
}

func seen(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
