package output_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
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
	month := seconds(35 * day)
	return &report.Report{
		Schema: "imds-migrate.report/v1", Cluster: "shop", Time: asked, PeriodSeconds: month, Prometheus: true,
		Summary: report.Summary{Workloads: 5, Pods: 9, PodsAsked: 7, Counts: report.Counts{Needed: 2, Waiting: 1, Unknown: 1, CanGo: 1, Direct: 3}},
		Namespaces: []report.Namespace{
			{Name: "data", Counts: report.Counts{Direct: 3}},
			{Name: "shop", Counts: report.Counts{Needed: 2, Waiting: 1, Unknown: 1, CanGo: 1}},
		},
		Workloads: []report.Workload{
			{
				Namespace: "shop", Kind: "CronJob", Name: "invoice", Verdict: report.Unknown, Text: "no run is known: ask while one runs, or after it", Codes: []string{"IMDS415"},
				PeriodSeconds: seconds(366 * day), PeriodOf: "cronjob/invoice", Clients: []report.Client{},
			},
			{
				Namespace: "shop", Kind: "Deployment", Name: "cart", Pods: 3, PodsAsked: 3, Verdict: report.Needed, ObservedSeconds: seconds(9 * day), PeriodSeconds: month,
				Text: "go-azidentity 1.1.0: azidentity (Go) 1.3.0 or later; curl 8.5.0: find out what it is, docs/metrics.md", Codes: []string{"IMDS411", "IMDS413", "IMDS416", "IMDS417"},
				Clients: []report.Client{
					{SDK: "go-azidentity", Version: "1.1.0", WorkloadIdentity: "no", Upgrade: "azidentity (Go) 1.3.0 or later", Pods: 3, Requests: 812, FirstSeen: asked.Add(-9 * day), LastSeen: asked.Add(-time.Minute)},
					{SDK: "curl", Version: "8.5.0", WorkloadIdentity: "unknown", Pods: 1},
				},
				Refused: map[string]int64{"identity_not_found": 2}, Failed: map[string]int64{"700213": 3, "other": 1}, Forwarded: 4, Versions: []string{"v0.1.0"},
				Faults: []report.Fault{
					{Pod: "cart-5d4f-aaaaa", Time: asked.Add(-2 * time.Hour), Identity: "99999999-0000-4000-8000-000000000000", Text: "Identity not found: object_id is not configured; see --identity"},
					{Pod: "cart-5d4f-aaaaa", Time: asked.Add(-time.Hour), ClientID: "66666666-7777-4888-9999-aaaaaaaaaaaa", Resource: "https://vault.azure.net", AADSTS: 700213, Text: "no federated credential matches the federated token", Remedy: "az identity federated-credential create …"},
				},
			},
			{
				Namespace: "shop", Kind: "Deployment", Name: "=cmd|' /C calc'!A0", Pods: 2, Verdict: report.Needed, Text: "<script>alert(1)</script> [x](https://evil.test) `code`", Codes: []string{"IMDS401", "IMDS402", "IMDS413"}, PeriodSeconds: month,
				Clients: []report.Client{{SDK: "unknown", WorkloadIdentity: "unknown", Pods: 2, Requests: 1, FirstSeen: asked, LastSeen: asked}},
			},
			{Namespace: "shop", Kind: "Deployment", Name: "search", Pods: 2, PodsAsked: 2, Verdict: report.CanGo, ObservedSeconds: seconds(36 * day), PeriodSeconds: month, Text: "nobody has asked for 36 days: the sidecar can go, if no job runs less often than every 35 days", Codes: []string{}, Clients: []report.Client{}},
			{
				Namespace: "shop", Kind: "StatefulSet", Name: "orders", Pods: 2, PodsAsked: 2, Verdict: report.Waiting, ObservedSeconds: seconds(3 * time.Hour), PeriodSeconds: month, Text: "nobody has asked for 3 hours; wait until 35 days have passed",
				Codes: []string{"IMDS414"}, CanGoFrom: asked.Add(35*day - 3*time.Hour), Clients: []report.Client{},
			},
		},
		Upgrades: []report.Upgrade{
			{SDK: "curl", Version: "8.5.0", To: "find out what it is, docs/metrics.md", Workloads: []string{"shop deployment/cart"}},
			{SDK: "go-azidentity", Version: "1.1.0", To: "azidentity (Go) 1.3.0 or later", Workloads: []string{"shop deployment/cart"}},
			{SDK: "unknown", To: "find out what it is, docs/metrics.md", Workloads: []string{"shop deployment/=cmd|' /C calc'!A0"}},
		},
		NotAsked: []report.NotAsked{
			{Namespace: "shop", Pod: "odd-1", Code: "IMDS401", Reason: "you may not create pods/exec", Hint: "ask for the ClusterRole of docs/report.md#permissions"},
			{Namespace: "shop", Pod: "odd-2", Code: "IMDS402", Reason: "it has not answered in time"},
		},
		NotRead: []report.NotRead{{Code: "IMDS407", What: "rollouts.argoproj.io", Why: "you may not list rollouts.argoproj.io"}},
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
	elements, policy, hash := map[string]int{}, "", ""
	for node := range root.Descendants() {
		if node.Type == html.ElementNode {
			elements[node.Data]++
			for _, a := range node.Attr {
				if a.Key == "content" && strings.HasPrefix(a.Val, "default-src 'none';") {
					policy = a.Val
				}
				if a.Key == "src" || a.Key == "href" || a.Key == "style" || strings.HasPrefix(a.Key, "on") || strings.Contains(a.Val, "://") {
					t.Errorf("<%s> has %s=%q", node.Data, a.Key, a.Val)
				}
			}
			if node.Data == "style" {
				sum := sha256.Sum256([]byte(node.FirstChild.Data))
				hash = "style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "';"
			}
			if text := textOf(node); (node.Data == "th" || node.Data == "h2" || node.Data == "h3" || node.Data == "title") && text == "" {
				t.Errorf("an empty <%s>", node.Data)
			}
		}
	}
	if hash == "" || !strings.Contains(policy, hash) {
		t.Errorf("the Content-Security-Policy is %q, want %s", policy, hash)
	}
	for _, name := range []string{"script", "img", "iframe", "link", "object", "a", "form"} {
		if elements[name] > 0 {
			t.Errorf("the page has <%s>", name)
		}
	}
	if elements["table"] != 2 || elements["tr"] != 2+2+5 || elements["caption"] != 2 || elements["h1"] != 1 || strings.Contains(page.String(), "url(") || !strings.Contains(page.String(), "&lt;script&gt;") {
		t.Errorf("got the elements %v", elements)
	}
}

func textOf(node *html.Node) string {
	text := ""
	for child := range node.Descendants() {
		if child.Type == html.TextNode {
			text += child.Data
		}
	}
	return text
}

// TestHostileReport: no text of a report becomes an element or an attribute of the page, a link or an image in
// Markdown, or a formula in a spreadsheet.
func TestHostileReport(t *testing.T) {
	for _, hostile := range []string{
		`"><script>alert(1)</script><img src=x onerror=alert(1)>`, `' onmouseover='alert(1)`, `</style><style>body{display:none}</style>`, `]]><!--`, `javascript:alert(1)`,
		`![x](https://evil.test/x.png)`, "`x` | y\n# z", `=HYPERLINK("https://evil.test")`,
	} {
		r := sidecars()
		setStrings(reflect.ValueOf(r).Elem(), hostile)
		var page, markdown, table bytes.Buffer
		if err := errors.Join(output.WriteReport(&page, r, "html"), output.WriteReport(&markdown, r, "markdown"), output.WriteReport(&table, r, "csv")); err != nil {
			t.Fatal(err)
		}
		root, err := html.Parse(&page)
		if err != nil {
			t.Fatal(err)
		}
		for node := range root.Descendants() {
			if node.Type == html.CommentNode || node.Type == html.ElementNode && slices.Contains([]string{"script", "img", "a", "iframe"}, node.Data) {
				t.Errorf("%s: the page has <%s>", hostile, node.Data)
			}
			for _, a := range node.Attr {
				if strings.HasPrefix(a.Key, "on") || a.Key == "style" {
					t.Errorf("%s: the page has the attribute %s", hostile, a.Key)
				}
			}
		}
		if text := markdown.String(); strings.Contains(text, "![x]") || strings.Contains(text, "\n# z") || strings.Contains(text, "<script>") || strings.Contains(text, "`x`") {
			t.Errorf("%s: got the Markdown %s", hostile, text)
		}
		rows, err := csv.NewReader(&table).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, cell := range slices.Concat(rows...) {
			if strings.HasPrefix(cell, "=") {
				t.Errorf("%s: got the cell %s", hostile, cell)
			}
		}
	}
}

// setStrings sets all texts in a value, also in lists and in the keys of maps.
func setStrings(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				setStrings(v.Field(i), text)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			setStrings(v.Index(i), text)
		}
	case reflect.Map:
		if v.Len() > 0 {
			clear := reflect.MakeMap(v.Type())
			clear.SetMapIndex(reflect.ValueOf(text), reflect.ValueOf(int64(1)))
			v.Set(clear)
		}
	}
}

// TestReportLists: a terminal gets a part of long lists, and wide all.
func TestReportLists(t *testing.T) {
	r := sidecars()
	r.NotAsked = nil
	for i := range 5000 {
		r.NotAsked = append(r.NotAsked, report.NotAsked{Namespace: "shop", Pod: fmt.Sprint("odd-", i), Code: "IMDS401", Reason: "you may not create pods/exec"})
	}
	for format, want := range map[string]int{"table": 20, "wide": 5000, "markdown": 5000, "html": 5000} {
		var got bytes.Buffer
		if err := output.WriteReport(&got, r, format); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(got.String(), "IMDS401 shop odd-"); n != want || (format == "table") != strings.Contains(got.String(), "and 4980 more: --output=wide") {
			t.Errorf("%s: got %d pods, want %d", format, n, want)
		}
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
		if text := got.String(); format != "json" && format != "yaml" && format != "csv" && !strings.Contains(strings.ToLower(text), "no workload has the sidecar") {
			t.Errorf("%s: got %s", format, text)
		}
	}
}
