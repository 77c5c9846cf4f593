package manifests

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// query is a PromQL query of a page.
type query struct{ page, comment, expr string }

var fencedBlock = regexp.MustCompile("(?ms)^ *```[a-z]*\n(.*?)^ *```")

// documentedQueries returns the queries about the proxy in docs/: each fenced block that names
// one of its metrics is one query, which may begin with a comment.
func documentedQueries(t *testing.T) []query {
	t.Helper()
	pages, err := filepath.Glob(filepath.Join(repository, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	var queries []query
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range fencedBlock.FindAllStringSubmatch(string(text), -1) {
			q := query{page: filepath.Base(page)}
			for line := range strings.Lines(block[1]) {
				if comment, ok := strings.CutPrefix(line, "#"); ok {
					q.comment += strings.TrimSpace(comment)
					continue
				}
				q.expr += line
			}
			if strings.Contains(q.expr, "imds_oidc_proxy_") {
				queries = append(queries, q)
			}
		}
	}
	if len(queries) < 4 {
		t.Fatalf("found %d queries in docs/*.md, want at least the 4 of metrics.md", len(queries))
	}
	return queries
}

// TestDocumentedQueries: each query in docs/ is valid PromQL, uses metrics and label values
// that the proxy has, and those about the removal of a sidecar find what they should
// (testdata/queries.yaml).
func TestDocumentedQueries(t *testing.T) {
	page := scrape(t)
	names := map[string]string{ // by the beginning of the comment
		"what to upgrade": "docs:what_to_upgrade", "may the sidecar be removed": "docs:callers", "days of data": "docs:days_of_data",
	}
	var rules []map[string]string
	for i, q := range documentedQueries(t) {
		for _, metric := range regexp.MustCompile(`imds_oidc_proxy_[a-z_]+`).FindAllString(q.expr, -1) {
			if !strings.Contains(page, "# TYPE "+strings.TrimSuffix(metric, "_bucket")+" ") {
				t.Errorf("%s: %s is no metric of the proxy:\n%s", q.page, metric, q.expr)
			}
		}
		for _, use := range labelUses(q.expr) {
			if !slices.ContainsFunc(strings.Split(page, "\n"), use.in) {
				t.Errorf("%s: the proxy has no series imds_oidc_proxy_%s with %s=%q", q.page, use.metric, use.label, use.value)
			}
		}
		record := "docs:other_" + string(rune('a'+i))
		for comment, name := range names {
			if q.page == "metrics.md" && strings.HasPrefix(q.comment, comment) {
				record = name
				delete(names, comment)
			}
		}
		rules = append(rules, map[string]string{"record": record, "expr": q.expr})
	}
	for comment := range names {
		t.Errorf("docs/metrics.md has no query %q", comment)
	}
	dir := t.TempDir()
	writeYAML(t, filepath.Join(dir, "queries-rules.yaml"), map[string]any{"groups": []any{map[string]any{"name": "docs", "rules": rules}}})
	copyTestdata(t, dir, "queries.yaml")
	promtool(t, dir, "check", "rules", "queries-rules.yaml")
	promtool(t, dir, "test", "rules", "queries.yaml")
}

// TestRemovalPeriod: the alert that a sidecar is no longer needed waits longer than any month,
// its text names that period, and the query of docs/metrics.md looks as far back.
func TestRemovalPeriod(t *testing.T) {
	rules, _, _ := monitoring(t)
	rule := removal(t, rules).Rules[0]
	days := strings.TrimSuffix(string(*rule.For), "d")
	period, err := strconv.Atoi(days)
	if err != nil {
		t.Fatalf("waits %s, want a number of days: %v", *rule.For, err)
	}
	if period <= 31+1 {
		t.Errorf("waits %d days, want more than a month and the day for which the alert remembers a caller", period)
	}
	if text := rule.Annotations["description"]; !strings.Contains(text, "("+days+" days ") {
		t.Errorf("waits %s, and the description does not say so: %s", *rule.For, text)
	}
	for _, q := range documentedQueries(t) {
		if strings.HasPrefix(q.comment, "may the sidecar be removed") && !strings.Contains(q.expr, "imds_oidc_proxy_callers["+days+"d]") {
			t.Errorf("docs/metrics.md does not look back %s days: %s", days, q.expr)
		}
	}
}
