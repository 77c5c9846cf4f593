package output_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"golang.org/x/net/html"

	"imds-oidc-proxy/internal/output"
	"imds-oidc-proxy/internal/report"
)

var update = flag.Bool("update", false, "write the reports to testdata")

// sidecars is a report with each verdict, and with names that want to be something else.
func sidecars() *report.Report {
	asked := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	seconds := func(d time.Duration) int64 { return int64(d / time.Second) }
	return &report.Report{
		Cluster: "shop", Time: asked, PeriodSeconds: seconds(35 * day), Prometheus: true,
		Summary: report.Summary{Workloads: 5, Pods: 9, PodsAsked: 7, Counts: report.Counts{Needed: 2, Waiting: 1, Unknown: 1, CanGo: 1, Direct: 3}},
		Namespaces: []report.Namespace{
			{Name: "data", Counts: report.Counts{Direct: 3}},
			{Name: "shop", Counts: report.Counts{Needed: 2, Waiting: 1, Unknown: 1, CanGo: 1}},
		},
		Workloads: []report.Workload{
			{Namespace: "shop", Kind: "CronJob", Name: "invoice", Verdict: report.Unknown, Text: "no pod runs: ask again while one does, or set --prometheus", Clients: []report.Client{}},
			{
				Namespace: "shop", Kind: "Deployment", Name: "cart", Pods: 3, PodsAsked: 3, Verdict: report.Needed, ObservedSeconds: seconds(9 * day),
				Text: "go-azidentity 1.1.0: azidentity (Go) 1.3.0 or later; curl 8.5.0: find out what it is, docs/metrics.md",
				Clients: []report.Client{
					{SDK: "go-azidentity", Version: "1.1.0", WorkloadIdentity: "no", Upgrade: "azidentity (Go) 1.3.0 or later", Pods: 3, Requests: 812, FirstSeen: asked.Add(-9 * day), LastSeen: asked.Add(-time.Minute)},
					{SDK: "curl", Version: "8.5.0", WorkloadIdentity: "unknown", Pods: 1},
				},
				Refused: map[string]int64{"identity_not_found": 2}, Failed: map[string]int64{"700213": 3, "other": 1}, Forwarded: 4, Versions: []string{"v0.1.0"},
				Faults: []report.Fault{{Pod: "cart-5d4f-aaaaa", Time: asked.Add(-time.Hour), Text: "AADSTS700213: no federated credential matches: az identity federated-credential create …"}},
			},
			{Namespace: "shop", Kind: "Deployment", Name: "=cmd|' /C calc'!A0", Pods: 2, Verdict: report.Needed, Text: "<script>alert(1)</script>", Clients: []report.Client{{SDK: "unknown", WorkloadIdentity: "unknown", Pods: 2, Requests: 1, FirstSeen: asked, LastSeen: asked}}},
			{Namespace: "shop", Kind: "Deployment", Name: "search", Pods: 2, PodsAsked: 2, Verdict: report.CanGo, ObservedSeconds: seconds(36 * day), Text: "nobody has asked for 36 days: the sidecar can go, if no job runs less often than every 35 days", Clients: []report.Client{}},
			{Namespace: "shop", Kind: "StatefulSet", Name: "orders", Pods: 2, PodsAsked: 2, Verdict: report.Waiting, ObservedSeconds: seconds(3 * time.Hour), Text: "nobody has asked for 3 hours; wait until 35 days have passed", Clients: []report.Client{}},
		},
		NotAsked: []report.NotAsked{
			{Namespace: "shop", Pod: "odd-1", Reason: "you may not create pods/exec", Hint: "ask for the ClusterRole of docs/plan.md#report"},
			{Namespace: "shop", Pod: "odd-2", Reason: "it has not answered in time"},
		},
	}
}

// TestReportFormats compares each format with a file, or writes it with -update.
func TestReportFormats(t *testing.T) {
	for _, format := range output.ReportFormats {
		var got bytes.Buffer
		if err := output.WriteReport(&got, sidecars(), format); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", "report."+format)
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || !bytes.Equal(want, got.Bytes()) {
			t.Errorf("%s: %v: go test ./internal/output -update writes it\n%s", format, err, diff.Diff(file, want, "got", got.Bytes()))
		}
	}
	if err := output.WriteReport(new(bytes.Buffer), sidecars(), "pdf"); err == nil {
		t.Error("an unknown format: got no error")
	}
}

// TestReportPage: the page needs nothing from elsewhere, and a name in it stays text.
func TestReportPage(t *testing.T) {
	var page bytes.Buffer
	if err := output.WriteReport(&page, sidecars(), "html"); err != nil {
		t.Fatal(err)
	}
	root, err := html.Parse(strings.NewReader(page.String()))
	if err != nil {
		t.Fatal(err)
	}
	elements := map[string]int{}
	for node := range root.Descendants() {
		if node.Type == html.ElementNode {
			elements[node.Data]++
			for _, a := range node.Attr {
				if a.Key == "src" || a.Key == "href" || strings.HasPrefix(a.Key, "on") || strings.Contains(a.Val, "://") {
					t.Errorf("<%s> has %s=%q", node.Data, a.Key, a.Val)
				}
			}
		}
	}
	for _, name := range []string{"script", "img", "iframe", "link", "object"} {
		if elements[name] > 0 {
			t.Errorf("the page has <%s>", name)
		}
	}
	if elements["table"] != 2 || elements["tr"] != 2+2+5 || strings.Contains(page.String(), "url(") || !strings.Contains(page.String(), "&lt;script&gt;") {
		t.Errorf("got the elements %v", elements)
	}
}

// TestEmptyReport: a cluster without a sidecar is a result too.
func TestEmptyReport(t *testing.T) {
	empty := &report.Report{PeriodSeconds: 3600, Namespaces: []report.Namespace{}, Workloads: []report.Workload{}, NotAsked: []report.NotAsked{}}
	for _, format := range output.ReportFormats {
		var got bytes.Buffer
		if err := output.WriteReport(&got, empty, format); err != nil {
			t.Fatal(err)
		}
		if text := got.String(); format != "json" && format != "yaml" && format != "csv" && !strings.Contains(text, "no workload has the sidecar") {
			t.Errorf("%s: got %s", format, text)
		}
	}
}
