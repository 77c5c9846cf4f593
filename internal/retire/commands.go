package retire

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"unicode"

	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/shell"
	"imds-oidc-proxy/internal/survey"
)

// quote returns a text as one word of a shell command.
func quote(text string) string { return shell.Quote(text) }

// printable replaces control characters, which would forge a line.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}

// words returns a program with the flags that choose the cluster.
func (b *builder) words(program string) []string {
	words := []string{program}
	for _, flag := range b.options.Flags {
		words = append(words, flagWord(flag))
	}
	return words
}

// helmFlags are Helm's names of flags of kubectl.
var helmFlags = map[string]string{"--context": "--kube-context", "--server": "--kube-apiserver"}

// helmWords returns a command of Helm with the flags that choose the cluster.
func (b *builder) helmWords(args ...string) []string {
	words := append([]string{"helm"}, args...)
	for _, flag := range b.options.Flags {
		name, value, _ := strings.Cut(flag, "=")
		words = append(words, cmp.Or(helmFlags[name], name)+"="+quote(value))
	}
	return words
}

// flagWord returns a flag with its value as one word of a shell command.
func flagWord(flag string) string {
	name, value, hasValue := strings.Cut(flag, "=")
	if hasValue && strings.HasPrefix(flag, "--") {
		return name + "=" + quote(value)
	}
	return quote(flag)
}

// kubectl returns a command of kubectl for the cluster. The namespace may be empty.
func (b *builder) kubectl(namespace string, args ...string) string {
	words := b.words("kubectl")
	if namespace != "" {
		words = append(words, "--namespace="+quote(namespace))
	}
	for _, arg := range args {
		words = append(words, flagWord(arg))
	}
	return strings.Join(words, " ")
}

// target returns a workload as kubectl names it. Kinds of other groups than Kubernetes' need their group.
func target(w *plan.Workload) string {
	if slices.Contains([]string{"", "apps", "batch"}, w.Group) {
		return w.Key()
	}
	for _, k := range survey.Kinds {
		if k.Group == w.Group && k.Kind == w.Kind {
			return k.String() + "/" + w.Name
		}
	}
	return w.Key()
}

// key returns KIND/NAME of a workload for a person.
func (b *builder) key(ref survey.Ref) string {
	if w := b.planned[ref]; w != nil {
		return w.Key()
	}
	return strings.ToLower(ref.Kind) + "/" + ref.Name
}

// mergePatch returns a JSON merge patch (RFC 7396) of a removal.
func mergePatch(p plan.Patch) string {
	body := map[string]any{}
	p.Merge(body)
	text, _ := json.Marshal(body) // cannot fail
	return string(text)
}

// none returns a command that succeeds if a list of kubectl is empty, and fails if it cannot be read.
func none(list string) string {
	return "left=$(" + list + ") && [ -z \"$left\" ]"
}

// exists returns the beginning of a command that is not run if a list of kubectl is empty. With set -e, it also fails
// if the list cannot be read.
func exists(list string) string {
	return "left=$(" + list + `); [ -z "$left" ] || `
}
