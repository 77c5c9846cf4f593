package output

import (
	"cmp"
	"encoding/csv"
	"encoding/json"
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
	"table": reportTable, "markdown": reportMarkdown, "csv": reportCSV, "json": reportJSON, "yaml": reportYAML, "html": reportHTML,
}

// ReportFormats are the formats of a report in the order of the documentation.
var ReportFormats = []string{"table", "json", "yaml", "markdown", "csv", "html"}

// WriteReport writes a report in one of [ReportFormats].
func WriteReport(w io.Writer, r *report.Report, format string) error {
	write, known := reportWriters[format]
	if !known {
		return fmt.Errorf("unknown format %q", format)
	}
	return write(w, r)
}

func reportJSON(w io.Writer, r *report.Report) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
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
	l.add("%s", headline(r))
	l.add("%s", askedText(r))
	if len(r.Workloads) > 0 {
		l.add("")
		rows := make([][]string, len(r.Workloads))
		for i := range r.Workloads {
			x := &r.Workloads[i]
			rows[i] = []string{x.Namespace, x.Key(), strconv.Itoa(x.Pods), askers(x), lastAsked(x), observedText(x), string(x.Verdict)}
		}
		l.table([]string{"NAMESPACE", "WORKLOAD", "PODS", "ASKED BY", "LAST ASKED", "OBSERVED", "SIDECAR"}, rows)
		l.add("")
		l.add("What to do:")
		for i := range r.Workloads {
			x := &r.Workloads[i]
			l.add("  %s %s: %s", x.Namespace, x.Key(), x.Text)
		}
	}
	l.section("Refused and failed requests:", problems(r))
	l.section("Not asked:", notAsked(r))
	return l.to(w)
}

func (l *lines) section(title string, texts []string) {
	if len(texts) == 0 {
		return
	}
	l.add("\n%s", title)
	for _, text := range texts {
		l.add("  %s", text)
	}
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
	return fmt.Sprintf("Asked at %s: %d of %s, %s. Period of the jobs: %s (--period).", stamp(r.Time), r.Summary.PodsAsked, number(r.Summary.Pods, "pod", "pods"), memory, report.Days(time.Duration(r.PeriodSeconds)*time.Second))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04Z") }

// askers are the clients of a workload for a column.
func askers(w *report.Workload) string {
	var names []string
	for _, c := range w.Clients {
		names = append(names, strings.TrimSpace(c.SDK+" "+c.Version))
	}
	return listOr(names, "-")
}

func lastAsked(w *report.Workload) string {
	var last time.Time
	for _, c := range w.Clients {
		if c.LastSeen.After(last) {
			last = c.LastSeen
		}
	}
	if last.IsZero() {
		return "-"
	}
	return stamp(last)
}

func observedText(w *report.Workload) string {
	if w.ObservedSeconds == 0 && w.PodsAsked == 0 {
		return "-"
	}
	return report.Days(time.Duration(w.ObservedSeconds) * time.Second)
}

// problems lists what fails: the errors of logs, which have the remedy, or the counters.
func problems(r *report.Report) []string {
	var texts []string
	for i := range r.Workloads {
		w := &r.Workloads[i]
		name := w.Namespace + " " + w.Key() + ": "
		if counted := slices.Concat(counts(w.Failed, "AADSTS"), counts(w.Refused, "")); len(counted) > 0 {
			texts = append(texts, name+"since the start "+strings.Join(counted, ", ")+" (docs/troubleshooting.md)")
		}
		for _, f := range w.Faults {
			texts = append(texts, fmt.Sprintf("%s%s at %s: %s", name, f.Pod, stamp(f.Time), f.Text))
		}
	}
	return texts
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
		text := n.Namespace + " " + n.Pod + ": " + n.Reason
		if n.Hint != "" {
			text += " -> " + n.Hint
		}
		texts = append(texts, text)
	}
	return texts
}

func reportMarkdown(w io.Writer, r *report.Report) error {
	l := new(lines)
	l.add("# Sidecars%s\n", strings.TrimRight(" of "+cell(r.Cluster), " of"))
	l.add("%s\n", cell(headline(&report.Report{Summary: r.Summary})))
	l.add("%s\n", cell(askedText(r)))
	l.add("## Namespaces\n")
	l.head("namespace", "needed", "waiting", "not known", "can go", "without a sidecar")
	for _, n := range r.Namespaces {
		l.row(n.Name, strconv.Itoa(n.Needed), strconv.Itoa(n.Waiting), strconv.Itoa(n.Unknown), strconv.Itoa(n.CanGo), strconv.Itoa(n.Direct))
	}
	l.add("\n## Workloads\n")
	l.head("namespace", "workload", "pods", "asked by", "last asked", "observed", "sidecar", "what to do")
	for i := range r.Workloads {
		x := &r.Workloads[i]
		l.row(x.Namespace, x.Key(), strconv.Itoa(x.Pods), askers(x), lastAsked(x), observedText(x), string(x.Verdict), x.Text)
	}
	for _, part := range []struct {
		title string
		texts []string
	}{{"Refused and failed requests", problems(r)}, {"Not asked", notAsked(r)}} {
		if len(part.texts) > 0 {
			l.add("\n## %s\n", part.title)
		}
		for _, text := range part.texts {
			l.add("- %s", cell(text))
		}
	}
	return l.to(w)
}

// reportCSV writes one row for each client of a workload, and one for a workload without clients.
func reportCSV(w io.Writer, r *report.Report) error {
	rows := [][]string{{"namespace", "kind", "name", "pods", "pods_asked", "verdict", "observed_seconds", "sdk", "version", "workload_identity", "requests", "first_seen", "last_seen", "what_to_do"}}
	for i := range r.Workloads {
		x := &r.Workloads[i]
		clients := x.Clients
		if len(clients) == 0 {
			clients = []report.Client{{}}
		}
		for _, c := range clients {
			rows = append(rows, []string{x.Namespace, x.Kind, x.Name, strconv.Itoa(x.Pods), strconv.Itoa(x.PodsAsked), string(x.Verdict), strconv.FormatInt(x.ObservedSeconds, 10),
				c.SDK, c.Version, c.WorkloadIdentity, strconv.FormatUint(c.Requests, 10), seen(c.FirstSeen), seen(c.LastSeen), cmp.Or(c.Upgrade, x.Text)})
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
