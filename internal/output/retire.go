package output

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/retire"
)

// retireWriters has the function of each format of a removal.
var retireWriters = map[string]func(io.Writer, *retire.Retirement) error{
	"text": retireText, "sh": retireShell, "patch": retirePatch, "json": retireJSON,
}

// RetireFormats are the formats of a removal in the order of the documentation.
var RetireFormats = []string{"text", "sh", "patch", "json"}

// WriteRetirement writes what can be removed in one of [RetireFormats].
func WriteRetirement(w io.Writer, r *retire.Retirement, format string) error {
	write, known := retireWriters[format]
	if !known {
		return fmt.Errorf("unknown format %q", format)
	}
	return write(w, r)
}

func retireJSON(w io.Writer, r *retire.Retirement) error {
	return indentedJSON(w, r)
}

// basis says what a removal is based on.
func basis(r *retire.Retirement) string {
	text := "No report was given, so no sidecar is removed: imds-migrate report --output=json > report.json, then --report=report.json."
	if !r.Observed.IsZero() {
		text = "Report of " + stamp(r.Observed) + "."
	}
	if r.Cluster != "" {
		text = "Cluster " + r.Cluster + ". " + text
	}
	return text
}

func retireText(w io.Writer, r *retire.Retirement) error {
	l := new(lines)
	l.add("%s", basis(r))
	if len(r.Steps) == 0 {
		l.add("Nothing can be removed now.")
	} else {
		l.add("%s, in this order. The commands of a step may run when all its checks succeed.", number(len(r.Steps), "step", "steps"))
	}
	for _, v := range variables(r.Steps) {
		l.add("%s is %s.", v, retire.Variables[v])
	}
	for i, s := range r.Steps {
		l.add("")
		l.add("%d. %s", i+1, s.Title)
		if s.Reason != "" {
			l.add("   %s", s.Reason)
		}
		for _, c := range s.Checks {
			l.add("   check%s: %s", wait(c), c.Command)
		}
		for _, c := range s.Commands {
			l.add("   %s", c)
		}
		if s.ByHand != "" {
			l.add("   by hand: %s", s.ByHand)
		}
	}
	all := []section{{"Stays", stays(r)}, {"Not read", r.NotRead}}
	if r.Search != "" {
		all = append(all, section{"aad-pod-identity in your repositories", []string{r.Search}})
	}
	for _, s := range filled(all) {
		l.add("\n%s:", s.Title)
		for _, item := range s.Items {
			l.add("  %s", item)
		}
	}
	if len(r.None) > 0 {
		l.add("\nThe files contain none of: %s. If the cluster has some, export them too: they may use what is removed.", strings.Join(r.None, ", "))
	}
	l.add("")
	l.add("Nothing was changed: imds-migrate retire only prints commands.")
	return l.to(w)
}

func wait(c retire.Check) string {
	if c.Wait {
		return ", some minutes"
	}
	return ""
}

func stays(r *retire.Retirement) []string {
	var texts []string
	for _, s := range r.Stays {
		texts = append(texts, strings.TrimSpace(s.Namespace+" "+s.Name)+": "+s.Reason)
	}
	return texts
}

// variables returns the shell variables that the commands of steps use.
func variables(steps []retire.Step) []string {
	var used []string
	for _, name := range sortedKeys(retire.Variables) {
		if slices.ContainsFunc(steps, func(s retire.Step) bool {
			return slices.ContainsFunc(s.Commands, func(c string) bool { return strings.Contains(c, `"$`+name+`"`) })
		}) {
			used = append(used, name)
		}
	}
	return used
}

// tries is how often a script repeats a check that has to wait: for ten minutes.
const tries = 120

// retireShell writes a script that stops at the first check or command that fails.
func retireShell(w io.Writer, r *retire.Retirement) error {
	l := new(lines)
	l.add("#!/bin/sh")
	l.add("# Written by imds-migrate retire, which has changed nothing. %s", comment(basis(r)))
	l.add("# It stops at the first check that fails. A second run is harmless.")
	for _, text := range stays(r) {
		l.add("# Stays: %s", comment(text))
	}
	for _, text := range r.NotRead {
		l.add("# Not read: %s", comment(text))
	}
	if len(r.None) > 0 {
		l.add("# The files contain none of: %s. If the cluster has some, export them too.", strings.Join(r.None, ", "))
	}
	l.add("set -eu")
	l.add(`stop() { echo "stopped: $1" >&2; exit 1; }`)
	byProgram := slices.DeleteFunc(slices.Clone(r.Steps), func(s retire.Step) bool { return s.ByHand != "" })
	for _, v := range variables(byProgram) {
		l.add(`: "${%s:?must be %s}"`, v, retire.Variables[v])
	}
	for i, s := range r.Steps {
		l.add("")
		l.add("# %d. %s", i+1, comment(s.Title))
		if s.Reason != "" {
			l.add("# %s", comment(s.Reason))
		}
		l.add("echo %s", quote(fmt.Sprintf("%d. %s", i+1, s.Title)))
		for _, c := range s.Checks {
			l.check(i+1, c)
		}
		mark := ""
		if s.ByHand != "" {
			l.add("# By hand: %s", comment(s.ByHand))
			l.add("echo %s", quote("   by hand: "+s.ByHand))
			mark = "# "
		}
		for _, c := range s.Commands {
			l.add("%s%s", mark, c)
		}
	}
	if r.Search != "" {
		l.add("\n# aad-pod-identity in your repositories: %s", r.Search)
	}
	return l.to(w)
}

func (l *lines) check(step int, c retire.Check) {
	stop := "stop " + quote(fmt.Sprintf("step %d: %s", step, c.Failed))
	if !c.Wait {
		l.add("{ %s; } || %s", c.Command, stop)
		return
	}
	l.add("i=0")
	l.add("until { %s; }; do", c.Command)
	l.add(`  i=$((i + 1)); [ "$i" -lt %d ] || %s`, tries, stop)
	l.add("  sleep 5")
	l.add("done")
}

// retirePatch writes the changes of manifests as a kustomize component.
func retirePatch(w io.Writer, r *retire.Retirement) error {
	l := new(lines)
	l.add("# Removals at the end of a migration to workload identity, written by imds-migrate retire. %s", comment(basis(r)))
	l.add("# Use it in a kustomization: components: [DIRECTORY]. Make the checks of imds-migrate retire first.")
	k := kustomization{APIVersion: "kustomize.config.k8s.io/v1alpha1", Kind: "Component", Patches: []kustomizePatch{}}
	for _, s := range r.Steps {
		if s.Patch == nil {
			continue
		}
		p := *s.Patch
		p.Reason = s.Title
		text, err := patchText(p)
		if err != nil {
			return err
		}
		k.Patches = append(k.Patches, kustomizePatch{target{p.Group, p.Kind, p.Namespace, p.Name}, text})
	}
	for _, text := range stays(r) {
		l.add("# Stays: %s", comment(text))
	}
	text, err := yaml.Marshal(k)
	if err != nil {
		return err
	}
	l.WriteString(string(text))
	return l.to(w)
}
