package diagnose

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Rules looks at the redirect's rules, where this process may.
type Rules struct {
	// List returns what the iptables-save of each backend prints. Nil: this process
	// may not look, or has nothing to look with.
	List func(context.Context) []Listing
}

// Listing is what one iptables-save printed.
type Listing struct {
	// Program is its name without -save, such as iptables-nft.
	Program string
	// Text is its standard output.
	Text string
	// Err says why there is none.
	Err error
}

// The chains of proxy-init, by which its rules are known.
const (
	natChain    = "IMDS_PROXY_OUTPUT"
	filterChain = "IMDS_PROXY_FILTER"
)

// rules says whether the redirect's rules are there, first, and for the proxy's port.
func (w *walk) rules(ctx context.Context) []Finding {
	if w.cfg.Rules.List == nil {
		return []Finding{w.rulesElsewhere()}
	}
	var found, unread []Finding
	holders := 0
	for _, listing := range w.cfg.Rules.List(ctx) {
		saved := parseSave(listing.Text)
		switch {
		case listing.Err != nil:
			unread = append(unread, Finding{Status: Skipped, Item: listing.Program, Text: "cannot be read: " + clip(listing.Err.Error())})
		case saved.holdsRedirect():
			holders++
			found = append(found, w.natRules(listing.Program, saved), filterRules(listing.Program, saved))
		}
	}
	switch {
	case holders == 0 && len(unread) > 0:
		found = append(found, Finding{Status: Note, Item: "redirect", Text: "none among the rules that can be read", Remedy: w.rulesElsewhere().Remedy})
	case holders == 0:
		found = append(found, w.noRules())
	case holders > 1:
		found = append(found, Finding{Status: Fail, Item: "redirect", Text: "both iptables backends hold one: which of them counts, nobody can say",
			Remedy: "run proxy-init again, which leaves one"})
	}
	return append(found, unread...)
}

// rulesElsewhere names the command that can look.
func (w *walk) rulesElsewhere() Finding {
	command := "kubectl debug -it POD"
	if namespace := w.namespace(); namespace != "" {
		command += " -n " + namespace
	}
	command += " --profile=netadmin --image=PROXY_INIT_IMAGE -- /proxy-init --check"
	if port := w.cfg.IMDS.Port; port != defaultPort {
		command += fmt.Sprintf(" --proxy-port=%d", port)
	}
	return Finding{Status: Skipped, Item: "iptables", Remedy: command,
		Text: "needs NET_ADMIN and iptables, and not both are here; run proxy-init --check in its own image, with the flags that proxy-init has"}
}

// defaultPort is the one that proxy and proxy-init have in common unless told.
const defaultPort = 8000

// namespacePattern is what Kubernetes allows, and no more than a shell takes.
var namespacePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// namespace is the pod's, by the subject of its token. Empty: it is not known.
func (w *walk) namespace() string {
	if w.token == nil {
		return ""
	}
	account, ours := strings.CutPrefix(w.token.Subject, subjectPrefix)
	namespace, _, _ := strings.Cut(account, ":")
	if !ours || !namespacePattern.MatchString(namespace) {
		return ""
	}
	return namespace
}

func (w *walk) noRules() Finding {
	f := Finding{Status: Note, Item: "redirect", Text: "no iptables backend holds one"}
	switch {
	case w.cfg.IMDS.NoRedirect:
		f.Text += ", as is meant"
	case w.proxyRuns:
		f.Status, f.Remedy = Fail, "run proxy-init before the proxy"
	default:
		f.Remedy = "run proxy-init, then the proxy"
	}
	return f
}

// natRules looks at what leads to the proxy.
func (w *walk) natRules(program string, saved saved) Finding {
	f := Finding{Status: OK, Item: "nat, " + program}
	port := saved.redirectPort()
	fault, remedy := saved.jump("nat", natChain)
	switch {
	case fault != "":
		f.Status, f.Text, f.Remedy = Fail, fault, remedy
	case port == 0:
		f.Status, f.Text, f.Remedy = Fail, natChain+" redirects nothing", runAgain
	case port != w.cfg.IMDS.Port:
		f.Status, f.Text = Fail, fmt.Sprintf("the redirect leads to port %d, where the proxy's is %d", port, w.cfg.IMDS.Port)
		f.Remedy = "give proxy-init and the proxy the same --proxy-port (PROXY_PORT)"
	default:
		f.Text = fmt.Sprintf("the jump to %s is first in OUTPUT, and leads to port %d", natChain, port)
	}
	return f
}

// filterRules looks at what rejects the rest.
func filterRules(program string, saved saved) Finding {
	f := Finding{Status: OK, Item: "filter, " + program}
	fault, remedy := saved.jump("filter", filterChain)
	switch {
	case fault != "":
		f.Status, f.Text, f.Remedy = Fail, fault, remedy
	case !slices.ContainsFunc(saved.chain("filter", filterChain), func(rule string) bool { return strings.Contains(rule, " -j REJECT") }):
		f.Status, f.Text, f.Remedy = Fail, filterChain+" rejects nothing: other ports of the metadata address are open", runAgain
	default:
		f.Text = fmt.Sprintf("the jump to %s is first in OUTPUT, and rejects what is not redirected", filterChain)
	}
	return f
}

const runAgain = "run proxy-init again, after whatever else changes this pod's rules"

// saved is the output of iptables-save: rules without their "-A CHAIN ", by table
// and chain. A chain without rules is there all the same.
type saved map[string]map[string][]string

func parseSave(text string) saved {
	all := saved{}
	table := map[string][]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = map[string][]string{}
			all[line[1:]] = table
		case strings.HasPrefix(line, ":"):
			name, _, _ := strings.Cut(line[1:], " ")
			table[name] = nil
		case strings.HasPrefix(line, "-A "):
			name, rule, _ := strings.Cut(line[len("-A "):], " ")
			table[name] = append(table[name], rule)
		}
	}
	return all
}

func (s saved) chain(table, name string) []string { return s[table][name] }

func (s saved) holdsRedirect() bool {
	_, nat := s["nat"][natChain]
	_, filter := s["filter"][filterChain]
	return nat || filter
}

// jump says what is wrong with the jump from OUTPUT to a chain. Empty: nothing.
func (s saved) jump(table, chain string) (fault, remedy string) {
	switch at := slices.Index(s.chain(table, "OUTPUT"), "-j "+chain); {
	case at < 0:
		return "OUTPUT has no jump to " + chain, runAgain
	case at > 0:
		return fmt.Sprintf("the jump to %s is rule %d of OUTPUT; the first is %q", chain, at+1, clip(s.chain(table, "OUTPUT")[0])), runAgain
	}
	return "", ""
}

var toPorts = regexp.MustCompile(`-j REDIRECT --to-ports (\d{1,5})$`)

// redirectPort is where the redirect leads. Zero: nowhere.
func (s saved) redirectPort() int {
	for _, rule := range s.chain("nat", natChain) {
		if m := toPorts.FindStringSubmatch(rule); m != nil {
			port, _ := strconv.Atoi(m[1]) // digits, by the pattern
			return port
		}
	}
	return 0
}
