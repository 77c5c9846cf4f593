package output

import (
	"encoding/csv"
	"fmt"
	"io"
	"strings"

	"imds-oidc-proxy/internal/plan"
)

// cell returns a text for a cell of a Markdown table.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(text)
}

// row writes one row of a Markdown table.
func (l *lines) row(cells ...string) {
	for i := range cells {
		cells[i] = cell(cells[i])
	}
	l.add("| %s |", strings.Join(cells, " | "))
}

func (l *lines) head(cells ...string) {
	l.row(cells...)
	l.add("|%s", strings.Repeat("---|", len(cells)))
}

func writeMarkdown(w io.Writer, p *plan.Plan, _ Config) error {
	l := new(lines)
	l.add("# Migration plan%s\n", strings.TrimRight(" of "+cell(p.Cluster.Name), " of"))
	l.head("", "")
	l.row("Kubernetes", listOr(nonEmpty(p.Cluster.ServerVersion), "not known"))
	l.row("issuer", listOr(nonEmpty(p.Cluster.Issuer), "not known"))
	l.row("aad-pod-identity", podIdentityText(p.Cluster.PodIdentity))
	l.row("webhooks that add tokens", listOr(p.Cluster.Webhooks, "none"))
	if p.Cluster.CNIPlugin {
		l.row("CNI plugin for the redirect", "installed")
	}
	l.row("namespaces", fmt.Sprintf("%d looked at, %d of the system left out", p.Cluster.Namespaces, len(p.Cluster.SystemNamespaces)))
	l.row("to create", fmt.Sprintf("%d federated credentials, %d service accounts", p.Summary.NewCredentials, p.Summary.NewAccounts))
	l.row("blocked", fmt.Sprintf("%d, and %d wait for a choice", p.Summary.Blocked, p.Summary.Choices))
	l.add("\n## Workloads\n")
	l.head("namespace", "workload", "today", "identity", "next step", "codes")
	for i := range p.Workloads {
		if x := &p.Workloads[i]; shown(*x) {
			l.row(x.Namespace, x.Key(), string(x.Today), identityOf(x.Identity), x.Next.Text, codesOf(*x))
		}
	}
	l.findings(p)
	l.markdownObjects(p)
	if len(p.Credentials) > 0 {
		l.add("\n## Federated credentials to create\n")
		l.head("identity", "name", "subject", "for")
		for _, c := range p.Credentials {
			l.row(c.Identity, c.Name, c.Subject, strings.Join(c.Reasons, "; "))
		}
	}
	if len(p.Accounts) > 0 {
		l.add("\n## Service accounts\n")
		l.head("namespace", "name", "exists", "client ID", "copy from default", "for")
		for _, a := range p.Accounts {
			l.row(a.Namespace, a.Name, map[bool]string{true: "no", false: "yes"}[a.New], string(a.ClientID), listOr(append(append([]string{}, a.PullSecrets...), a.Roles...), "-"), strings.Join(a.Workloads, ", "))
		}
	}
	l.add("\n## Not looked at\n")
	l.head("code", "what", "how")
	for _, f := range p.NotLookedAt {
		l.row(f.Code, f.Text, f.Fix)
	}
	return l.to(w)
}

func nonEmpty(text string) []string {
	if text == "" {
		return nil
	}
	return []string{text}
}

// findings lists what has to be known or done, of the cluster first.
func (l *lines) findings(p *plan.Plan) {
	l.add("\n## Findings\n")
	l.add("docs/plan.md explains the codes.\n")
	l.head("code", "severity", "where", "finding", "what to do")
	add := func(where string, findings []plan.Finding) {
		for _, f := range findings {
			l.row(f.Code, string(f.Severity), where, f.Text, f.Fix)
		}
	}
	add("cluster", p.Findings)
	for i := range p.Workloads {
		add(p.Workloads[i].Namespace+" "+p.Workloads[i].Key(), p.Workloads[i].Findings)
	}
	for i := range p.Objects {
		add(strings.TrimSpace(p.Objects[i].Namespace+" "+p.Objects[i].Key()), p.Objects[i].Findings)
	}
	for _, i := range p.Identities {
		add("identity "+i.String(), i.Findings)
	}
}

func (l *lines) markdownObjects(p *plan.Plan) {
	if len(p.Objects) == 0 {
		return
	}
	l.add("\n## Objects of other tools\n")
	l.head("namespace", "object", "tool", "field", "identity", "changes")
	for i := range p.Objects {
		o := &p.Objects[i]
		var changes []string
		for _, c := range o.Changes {
			changes = append(changes, changeText(c))
		}
		l.row(o.Namespace, o.Key(), o.Tool, o.Field, identityOf(o.Identity), listOr(changes, "-"))
	}
}

// writeCSV writes one row for each workload and object.
func writeCSV(w io.Writer, p *plan.Plan, _ Config) error {
	out := csv.NewWriter(w)
	rows := [][]string{{"namespace", "kind", "name", "today", "certainty", "identity", "client_ids", "service_account", "next", "redirect", "severity", "codes"}}
	for i := range p.Workloads {
		x := &p.Workloads[i]
		account := x.ServiceAccount
		if x.NewServiceAccount != "" {
			account = x.NewServiceAccount
		}
		rows = append(rows, []string{x.Namespace, x.Kind, x.Name, string(x.Today), x.Certainty, x.Identity.State, clientIDs(x.Identity), account,
			x.Next.Step, x.Next.Redirect, string(x.Severity), allCodes(x.Findings)})
	}
	for i := range p.Objects {
		o := &p.Objects[i]
		rows = append(rows, []string{o.Namespace, o.Kind, o.Name, o.Tool, "certain", o.Identity.State, clientIDs(o.Identity), strings.Join(o.Subjects, " "),
			plan.StepChange, "", string(o.Severity), allCodes(o.Findings)})
	}
	for _, row := range rows {
		for i := range row {
			row[i] = inert(row[i])
		}
	}
	if err := out.WriteAll(rows); err != nil {
		return err
	}
	return out.Error()
}

// inert returns a text that a spreadsheet does not take for a formula: a file may contain any name.
func inert(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' {
			return '?'
		}
		return r
	}, text)
	if text != "" && strings.ContainsRune("=+-@", rune(text[0])) {
		return "'" + text
	}
	return text
}

func clientIDs(s plan.Selection) string {
	var ids []string
	list := s.Candidates
	if s.Default != nil {
		list = append([]plan.Ref{*s.Default}, s.Others...)
	} else if len(s.Others) > 0 {
		list = s.Others
	}
	for _, r := range list {
		ids = append(ids, string(r.ClientID))
	}
	return strings.Join(ids, " ")
}

func allCodes(findings []plan.Finding) string {
	var codes []string
	for _, f := range findings {
		if len(codes) == 0 || codes[len(codes)-1] != f.Code {
			codes = append(codes, f.Code)
		}
	}
	return strings.Join(codes, " ")
}
