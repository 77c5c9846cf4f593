package survey_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/survey"
)

// TestRole checks that the ClusterRole in docs/plan.md allows to list each kind but Secrets, and nothing else.
func TestRole(t *testing.T) {
	page, err := os.ReadFile("../../docs/plan.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "  name: imds-migrate-plan\n")
	text, _, _ = strings.Cut(text, "```")
	var role struct {
		Rules []struct{ APIGroups, Resources, Verbs, NonResourceURLs []string }
	}
	if err := yaml.Unmarshal([]byte(text), &role); err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, rule := range role.Rules {
		if verb := rule.Verbs[0]; len(rule.Verbs) != 1 || len(rule.NonResourceURLs) > 0 != (verb == "get") || verb != "get" && verb != "list" {
			t.Errorf("a plan only lists: %v", rule)
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				got = append(got, strings.TrimSuffix(resource+"."+group, "."))
			}
		}
	}
	for _, k := range survey.Kinds {
		if k.String() != "secrets" {
			want = append(want, k.String())
		}
	}
	want = append(want, "*.constraints.gatekeeper.sh")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the role allows\n%q, want\n%q", got, want)
	}
}

// TestReportRole checks that the ClusterRole in docs/report.md allows to list the kinds with pods.
func TestReportRole(t *testing.T) {
	page, err := os.ReadFile("../../docs/report.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "  name: imds-migrate-report\n")
	text, _, _ = strings.Cut(text, "```")
	var role struct {
		Rules []struct{ APIGroups, Resources, Verbs []string }
	}
	if err := yaml.Unmarshal([]byte(text), &role); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, rule := range role.Rules {
		for _, resource := range rule.Resources {
			if slices.Contains(rule.Verbs, "list") {
				got = append(got, strings.TrimSuffix(resource+"."+rule.APIGroups[0], "."))
			}
		}
	}
	want := survey.PodKinds()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the role allows to list\n%q, want\n%q", got, want)
	}
}

// TestKinds checks the table of kinds.
func TestKinds(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range survey.Kinds {
		if seen[k.String()] || len(k.Versions) == 0 || k.Resource != strings.ToLower(k.Resource) {
			t.Errorf("%s occurs twice, or has no version", k)
		}
		seen[k.String()] = true
	}
	if last := survey.Kinds[len(survey.Kinds)-1]; last.Kind != "Pod" {
		t.Error("pods must be read last, when the templates of their owners are known")
	}
}
