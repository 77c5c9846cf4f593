package docs

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/census"
)

// userAgents is how each SDK of the table begins to name itself.
var userAgents = map[string]string{
	"net-azure-identity":    "azsdk-net-Identity/",
	"cpp-azure-identity":    "azsdk-cpp-identity/",
	"go-azidentity":         "azsdk-go-azidentity/v",
	"java-azure-identity":   "azsdk-java-azure-identity/",
	"js-azure-identity":     "azsdk-js-identity/",
	"python-azure-identity": "azsdk-python-identity/",
	"rust-azure-identity":   "azsdk-rust-identity/",
}

// TestFirstVersions: the census agrees with the table of docs/migration.md on which
// version of an SDK is the first to do without the proxy.
func TestFirstVersions(t *testing.T) {
	text, err := os.ReadFile(repository + "/docs/migration.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| [^|]+ \| (\d+)\.(\d+)\.0 \| ([a-z-]+) \|$`).FindAllStringSubmatch(string(text), -1)
	if len(rows) != len(userAgents) {
		t.Fatalf("the table has %d SDKs, want %d", len(rows), len(userAgents))
	}
	for _, row := range rows {
		major, minor, name := row[1], row[2], row[3]
		agent := userAgents[name]
		if agent == "" {
			t.Errorf("%s: no User-Agent is known for it", name)
			continue
		}
		n, err := strconv.Atoi(minor)
		if err != nil {
			t.Fatal(err)
		}
		for version, want := range map[string]census.WorkloadIdentity{
			fmt.Sprintf("%s.%d.0", major, n):   census.Yes,
			fmt.Sprintf("%s.%d.9", major, n-1): census.No,
		} {
			c := census.New(census.Config{})
			c.Count(http.Header{"User-Agent": {agent + version + " (Linux)"}})
			got := c.Entries()[0]
			if got.SDK != name || got.WorkloadIdentity != want {
				t.Errorf("%s%s: the census says %s, workload identity %s; want %s, %s", agent, version, got.SDK, got.WorkloadIdentity, name, want)
			}
			if want == census.No && !strings.Contains(got.Upgrade, row[1]+"."+row[2]) {
				t.Errorf("%s%s: the advice %q does not name %s.%s", agent, version, got.Upgrade, major, minor)
			}
		}
	}
}
