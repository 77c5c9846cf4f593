package e2e

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
)

// destinations are the columns of the matrix.
var destinations = []struct{ name, endpoint string }{
	{"tcp 80", "tcp/169.254.169.254:80"},
	{"tcp 443", "tcp/169.254.169.254:443"},
	{"tcp 8080", "tcp/169.254.169.254:8080"},
	{"udp 80", "udp/169.254.169.254:80"},
	{"::ffff: 80", "mapped/169.254.169.254:80"},
	{"::ffff: 443", "mapped/169.254.169.254:443"},
}

// The expected results, in the order of the destinations.
var (
	everythingOpen = []string{byIMDS, byIMDS, byIMDS, byIMDS, byIMDS, byIMDS}
	onlyTheProxy   = []string{byProxy, isRefused, isRefused, isRefused, byProxy, isRefused}
	exempt         = []string{byIMDS, isRefused, isRefused, isRefused, byIMDS, isRefused}
)

// TestRedirectMatrix connects as each user to each destination, in each mode and on both
// backends, and logs a table of the servers that answer.
func TestRedirectMatrix(t *testing.T) {
	t.Parallel()
	type modeCase struct {
		name string
		args []string
		// want returns the expected results for a user.
		want func(asker) []string
	}
	modes := []modeCase{
		{"forwarding", nil, func(u asker) []string {
			if u == proxyUser {
				return exempt
			}
			return onlyTheProxy
		}},
		{"sealed", []string{"--seal"}, func(asker) []string { return onlyTheProxy }},
	}
	table := newMatrix()
	for _, backend := range backends {
		pod := newRedirectPod(t)
		ask := func(mode string, want func(asker) []string) {
			for _, u := range []asker{rootUser, appUser, proxyUser, otherGroup, otherUser} {
				got := pod.ask(u, endpoints()...)
				table.row(backend, mode, u.name, got)
				if !slices.Equal(got, want(u)) {
					t.Errorf("%s, %s, %s: %v, want %v", backend, mode, u.name, got, want(u))
				}
			}
		}
		// Without rules, all users reach all stand-ins.
		ask("no rules", func(asker) []string { return everythingOpen })
		for i, m := range modes {
			pod.install(append([]string{"--backend", backend}, m.args...)...)
			if i == 0 {
				pod.answerAs(proxyUser, byProxy+"=tcp/127.0.0.1:8000")
			}
			ask(m.name, m.want)
		}
	}
	t.Logf("the server that answers at 169.254.169.254\n%s", table)
}

func endpoints() []string {
	var out []string
	for _, p := range destinations {
		out = append(out, p.endpoint)
	}
	return out
}

// matrix is a table for the log of the test.
type matrix struct {
	text   bytes.Buffer
	writer *tabwriter.Writer
}

func newMatrix() *matrix {
	m := &matrix{}
	m.writer = tabwriter.NewWriter(&m.text, 0, 0, 2, ' ', 0)
	fmt.Fprint(m.writer, "backend\tmode\tuser:group")
	for _, p := range destinations {
		fmt.Fprintf(m.writer, "\t%s", p.name)
	}
	fmt.Fprintln(m.writer)
	return m
}

func (m *matrix) row(backend, mode, asker string, answers []string) {
	fmt.Fprintf(m.writer, "%s\t%s\t%s\t%s\n", backend, mode, asker, strings.Join(answers, "\t"))
}

func (m *matrix) String() string {
	m.writer.Flush()
	return m.text.String()
}
