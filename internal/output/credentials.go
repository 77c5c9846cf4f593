package output

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/shell"
)

// group is the federated credentials of one identity, in order. Azure refuses parallel writes of one
// identity's credentials, so every format writes them one after the other.
type group struct {
	plan.Identity
	credentials []plan.Credential
}

// groups returns the identities with credentials to create.
func groups(p *plan.Plan) []group {
	var all []group
	for _, i := range p.Identities {
		g := group{Identity: i}
		for _, c := range p.Credentials {
			if c.ClientID == i.ClientID {
				g.credentials = append(g.credentials, c)
			}
		}
		if len(g.credentials) > 0 {
			all = append(all, g)
		}
	}
	return all
}

// open returns what stops workloads, for a comment: credentials of those that are not decided are missing.
func open(p *plan.Plan) []string {
	var all []string
	for i := range p.Workloads {
		x := &p.Workloads[i]
		for _, f := range x.Findings {
			if f.Severity == plan.Choice || f.Severity == plan.Blocked {
				all = append(all, fmt.Sprintf("%s %s: %s %s", x.Namespace, x.Key(), f.Code, f.Text))
			}
		}
	}
	for i := range p.Objects {
		o := &p.Objects[i]
		for _, f := range o.Findings {
			if f.Severity == plan.Choice || f.Severity == plan.Blocked {
				all = append(all, fmt.Sprintf("%s: %s %s", strings.TrimSpace(o.Namespace+" "+o.Key()), f.Code, f.Text))
			}
		}
	}
	for _, i := range p.Identities {
		for _, f := range i.Findings {
			if f.Severity == plan.Blocked {
				all = append(all, f.Code+" "+f.Text)
			}
		}
	}
	return slices.Compact(all)
}

// comments writes the head of a file: where it comes from, and what is missing in it.
func (l *lines) comments(mark string, p *plan.Plan, more ...string) {
	of := ""
	if p.Cluster.Name != "" {
		of = " for cluster " + comment(p.Cluster.Name)
	}
	l.add("%s Federated credentials, written by imds-migrate plan%s. Create all of them before you restart pods:", mark, of)
	l.add("%s Entra remembers a failed request for minutes.", mark)
	for _, line := range more {
		l.add("%s %s", mark, line)
	}
	if missing := open(p); len(missing) > 0 {
		l.add("%s Blocked, or not decided yet:", mark)
		for _, line := range missing {
			l.add("%s   %s", mark, comment(line))
		}
	}
	if len(p.Credentials) == 0 {
		l.add("%s There is nothing to create.", mark)
	}
}

// comment returns a text that cannot end a comment.
func comment(text string) string { return strings.Join(strings.Fields(text), " ") }

// quote returns a text for a POSIX shell.
func quote(text string) string { return shell.Quote(text) }

// symbol returns a name for a resource in Terraform and Bicep: it begins with a letter, and has letters,
// digits and underscores only. Names that differ in other characters end with a number.
type symbols map[string]int

func (s symbols) of(name string) string {
	clean := regexp.MustCompile(`[^A-Za-z0-9_]`).ReplaceAllString(name, "_")
	if clean == "" || !regexp.MustCompile(`^[A-Za-z]`).MatchString(clean) {
		clean = "i_" + clean
	}
	s[clean]++
	if s[clean] > 1 {
		return clean + "_" + strconv.Itoa(s[clean])
	}
	return clean
}

// version is the version of a provider, such as 4.65.
type version struct{ major, minor int }

// ParseProvider checks the version of a provider.
func ParseProvider(text string) (string, error) {
	if text != "" && !regexp.MustCompile(`^v?[0-9]{1,3}(\.[0-9]{1,3}){0,2}$`).MatchString(text) {
		return "", azure.Invalid(text, "must be a version, such as 4.65")
	}
	return text, nil
}

func parseVersion(text, newest string) version {
	parts := append(strings.Split(strings.TrimPrefix(cmp.Or(text, newest), "v"), "."), "0")
	major, _ := strconv.Atoi(parts[0]) // ParseProvider has checked it
	minor, _ := strconv.Atoi(parts[1])
	return version{major, minor}
}

func (v version) atLeast(major, minor int) bool {
	return v.major > major || v.major == major && v.minor >= minor
}
