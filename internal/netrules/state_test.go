package netrules

import (
	"strings"
	"testing"
)

func TestCanonical(t *testing.T) {
	const ours = "-A IMDS_PROXY_FILTER -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -m owner ! --socket-exists -j RETURN"
	for name, tt := range map[string]struct {
		printed string
		same    bool
	}{
		"itself":            {ours, true},
		"another order":     {"-A IMDS_PROXY_FILTER -p tcp -d 169.254.169.254/32 -m owner ! --socket-exists -m tcp --dport 80 -j RETURN", true},
		"without /32":       {"-A IMDS_PROXY_FILTER -d 169.254.169.254 -p tcp -m tcp --dport 80 -m owner ! --socket-exists -j RETURN", true},
		"not negated":       {"-A IMDS_PROXY_FILTER -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -m owner --socket-exists -j RETURN", false},
		"other negation":    {"-A IMDS_PROXY_FILTER ! -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -m owner --socket-exists -j RETURN", false},
		"other target":      {"-A IMDS_PROXY_FILTER -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -m owner ! --socket-exists -j ACCEPT", false},
		"wider":             {"-A IMDS_PROXY_FILTER -d 169.254.169.0/24 -p tcp -m tcp --dport 80 -m owner ! --socket-exists -j RETURN", false},
		"one match missing": {"-A IMDS_PROXY_FILTER -d 169.254.169.254/32 -p tcp -m owner ! --socket-exists -j RETURN", false},
		"one match more":    {ours + " -s 10.0.0.0/8", false},
		"another chain":     {"-A IMDS_PROXY_OUTPUT -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -m owner ! --socket-exists -j RETURN", false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := canonical(tt.printed) == canonical(ours); got != tt.same {
				t.Errorf("%q: same %v, want %v", canonical(tt.printed), got, tt.same)
			}
		})
	}
}

func TestJumpTarget(t *testing.T) {
	for rule, want := range map[string]string{
		"-A OUTPUT -j IMDS_PROXY_OUTPUT":        "IMDS_PROXY_OUTPUT",
		"-A OUTPUT -p tcp -g IMDS_PROXY_OUTPUT": "IMDS_PROXY_OUTPUT",
		"-A OUTPUT -j REDIRECT --to-ports 8000": "REDIRECT",
		"-A OUTPUT -p tcp":                      "",
		"-A OUTPUT -j":                          "",
		"":                                      "",
		`-A OUTPUT -m comment --comment "x -j IMDS_PROXY_OUTPUT y" -j ACCEPT`:  "ACCEPT",
		`-A OUTPUT -m comment --comment "a \" -j IMDS_PROXY_OUTPUT" -j ACCEPT`: "ACCEPT",
		`-A OUTPUT -m comment --comment -j -j IMDS_PROXY_OUTPUT`:               "IMDS_PROXY_OUTPUT",
		`-A OUTPUT -m comment --comment "" -j ACCEPT`:                          "ACCEPT",
		`-A OUTPUT -m comment --comment "unclosed -j IMDS_PROXY_OUTPUT`:        "",
		`-A OUTPUT -j LOG --log-prefix "-j IMDS_PROXY_OUTPUT "`:                "LOG",
	} {
		if got := jumpTarget(rule); got != want {
			t.Errorf("jumpTarget(%s) = %q, want %q", rule, got, want)
		}
	}
}

// FuzzComment adds a comment to a rule, quoted as iptables prints it. The parser must never
// take the comment's text for the target of the rule.
func FuzzComment(f *testing.F) {
	for _, comment := range []string{"", " -j IMDS_PROXY_OUTPUT ", `" -j IMDS_PROXY_OUTPUT "`, `\" -g IMDS_PROXY_FILTER`, `\`, "it's"} {
		f.Add(comment)
	}
	quote := strings.NewReplacer(`"`, `\"`, `\`, `\\`, `'`, `\'`)
	f.Fuzz(func(t *testing.T, comment string) {
		rule := `-A OUTPUT -m comment --comment "` + quote.Replace(comment) + `" -j ACCEPT`
		if got := jumpTarget(rule); got != "ACCEPT" {
			t.Errorf("jumpTarget(%s) = %q, want ACCEPT", rule, got)
		}
	})
}
