package output

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"imds-oidc-proxy/internal/plan"
)

// table writes columns that are aligned by spaces.
func (l *lines) table(head []string, rows [][]string) {
	w := tabwriter.NewWriter(l, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{head}, rows...) {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	w.Flush()
}

func writeTable(w io.Writer, p *plan.Plan, _ Config) error {
	l := new(lines)
	l.header(p)
	var rows [][]string
	hidden := 0
	for i := range p.Workloads {
		x := &p.Workloads[i]
		if !shown(*x) {
			hidden++
			continue
		}
		rows = append(rows, []string{x.Namespace, x.Key(), string(x.Today), identityOf(x.Identity), x.Next.Brief, codesOf(*x)})
	}
	if len(rows) > 0 {
		l.table([]string{"NAMESPACE", "WORKLOAD", "TODAY", "IDENTITY", "NEXT STEP", "CODE"}, rows)
	}
	if hidden > 0 {
		l.add("Not shown: %s without a sign that they use an identity (--output=wide lists them).", number(hidden, "workload", "workloads"))
	}
	l.add("")
	l.footer(p)
	return l.to(w)
}

// header says what was looked at.
func (l *lines) header(p *plan.Plan) {
	c := p.Cluster
	name := "Cluster"
	if c.Name != "" {
		name += " " + c.Name
	}
	if c.ServerVersion != "" {
		name += " (Kubernetes " + c.ServerVersion + ")"
	}
	l.add("%s: %s in %s looked at, %s of the system left out, %s of add-ons left out.", name, number(len(p.Workloads), "workload", "workloads"),
		number(c.Namespaces, "namespace", "namespaces"), number(len(c.SystemNamespaces), "namespace", "namespaces"), number(c.Managed, "object", "objects"))
	if c.Issuer != "" {
		l.add("Issuer: %s", c.Issuer)
	}
	l.add("aad-pod-identity: %s", podIdentityText(c.PodIdentity))
	l.add("Webhooks that add tokens: %s", listOr(c.Webhooks, "none"))
	if c.CNIPlugin {
		l.add("CNI plugin for the redirect: installed")
	}
	for _, f := range p.Findings {
		l.add("%s", findingText(f))
	}
	l.add("")
}

func podIdentityText(i *plan.PodIdentity) string {
	if i == nil {
		return "not installed"
	}
	mode := i.Mode + " mode"
	if i.AddOn {
		mode = "add-on of AKS, " + mode
	}
	if i.Namespaced && i.Mode != "managed" {
		mode += ", pods match in their own namespace only"
	}
	if !i.Running {
		mode = "its objects exist, but its DaemonSet does not"
	}
	return fmt.Sprintf("%s; %s, %s, %s, %s", mode, number(i.Identities, "identity", "identities"), number(i.Bindings, "binding", "bindings"),
		number(i.Exceptions, "exception", "exceptions"), number(i.Assigned, "assigned identity", "assigned identities"))
}

func listOr(list []string, otherwise string) string {
	if len(list) == 0 {
		return otherwise
	}
	return strings.Join(list, ", ")
}

func findingText(f plan.Finding) string {
	text := f.Code + " " + string(f.Severity) + ": " + f.Text
	if f.Fix != "" {
		text += " -> " + f.Fix
	}
	return text
}

// footer says what is to be done, and what was not looked at.
func (l *lines) footer(p *plan.Plan) {
	s := p.Summary
	l.add("To create: %s, %s.", number(s.NewCredentials, "federated credential", "federated credentials"), number(s.NewAccounts, "service account", "service accounts"))
	for _, i := range p.Identities {
		l.add("  %s", i.Count(s.CredentialsCounted))
	}
	l.add("To change: %s, %s%s.", number(s.Labels, "label", "labels"), number(s.Annotations, "annotated service account", "annotated service accounts"), changed(s.ChangedObjects))
	if s.Blocked+s.Choices > 0 {
		l.add("Blocked: %d; waiting for your choice: %d.", s.Blocked, s.Choices)
	}
	if len(p.NotLookedAt) > 0 {
		l.add("Not looked at:")
		for _, f := range p.NotLookedAt {
			l.add("  %s %s (%s)", f.Code, f.Text, f.Fix)
		}
	}
	if len(p.None) > 0 {
		l.add("None found of: %s.", strings.Join(p.None, ", "))
	}
	l.add("The codes are explained in docs/plan.md. Nothing was changed.%s", nextCommand(s))
}

func changed(objects map[string]int) string {
	text := ""
	for _, kind := range sortedKeys(objects) {
		text += fmt.Sprintf(", %d %s", objects[kind], kind)
	}
	return text
}

func nextCommand(s plan.Summary) string {
	if s.NewCredentials == 0 {
		return ""
	}
	return " Next: imds-migrate plan --output=az > credentials.sh"
}

func sortedKeys[T any](set map[string]T) []string {
	var keys []string
	for key := range set {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func writeWide(w io.Writer, p *plan.Plan, _ Config) error {
	l := new(lines)
	l.header(p)
	var rows [][]string
	for i := range p.Workloads {
		x := &p.Workloads[i]
		account := x.ServiceAccount
		if x.NewServiceAccount != "" {
			account += " -> " + x.NewServiceAccount
		}
		rows = append(rows, []string{x.Namespace, x.Key(), fmt.Sprint(x.Pods), string(x.Today), x.Certainty, identityOf(x.Identity), account, x.Next.Brief, codesOf(*x)})
	}
	l.table([]string{"NAMESPACE", "WORKLOAD", "PODS", "TODAY", "CERTAINTY", "IDENTITY", "SERVICE ACCOUNT", "NEXT STEP", "CODE"}, rows)
	l.add("")
	l.details(p)
	l.objects(p)
	l.created(p)
	l.footer(p)
	return l.to(w)
}

// details lists evidence and findings of each workload.
func (l *lines) details(p *plan.Plan) {
	for i := range p.Workloads {
		x := &p.Workloads[i]
		if len(x.Evidence)+len(x.Findings)+len(x.Hints) == 0 {
			continue
		}
		l.add("%s %s", x.Namespace, x.Key())
		for _, e := range x.Evidence {
			l.add("  evidence: %s", e)
		}
		for _, h := range x.Hints {
			l.add("  hint: %s", h)
		}
		for _, f := range x.Findings {
			l.add("  %s", findingText(f))
		}
		if x.Next.Step != plan.StepNothing {
			l.add("  next: %s", x.Next.Text)
		}
	}
	if len(p.Workloads) > 0 {
		l.add("")
	}
}

// objects lists the objects of other tools.
func (l *lines) objects(p *plan.Plan) {
	for i := range p.Objects {
		o := &p.Objects[i]
		l.add("%s: %s, %s", strings.TrimSpace(o.Namespace+" "+o.Key()), o.Field, identityOf(o.Identity))
		for _, c := range o.Changes {
			l.add("  %s", changeText(c))
		}
		for _, f := range o.Findings {
			l.add("  %s", findingText(f))
		}
	}
	if len(p.Objects) > 0 {
		l.add("")
	}
}

func changeText(c plan.Change) string {
	if c.Remove {
		return "remove " + strings.Join(c.Path, ".")
	}
	return "set " + strings.Join(c.Path, ".") + ": " + c.Value
}

// created lists what is to be created.
func (l *lines) created(p *plan.Plan) {
	var rows [][]string
	for _, c := range p.Credentials {
		rows = append(rows, []string{c.Identity, c.Name, c.Subject, strings.Join(c.Reasons, "; ")})
	}
	if len(rows) > 0 {
		l.table([]string{"IDENTITY", "FEDERATED CREDENTIAL", "SUBJECT", "FOR"}, rows)
		l.add("")
	}
	rows = nil
	for _, a := range p.Accounts {
		what := "annotate"
		if a.New {
			what = "create"
		}
		rows = append(rows, []string{a.Namespace, a.Name, what, string(a.ClientID), listOr(append(slices.Clone(a.PullSecrets), a.Roles...), "-"), strings.Join(a.Workloads, ", ")})
	}
	if len(rows) > 0 {
		l.table([]string{"NAMESPACE", "SERVICE ACCOUNT", "", "CLIENT ID", "COPY FROM DEFAULT", "FOR"}, rows)
		l.add("")
	}
}
