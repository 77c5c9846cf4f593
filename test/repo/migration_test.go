package repo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"imds-oidc-proxy/internal/census"
)

// userAgents has the beginning of the User-Agent header of each SDK in the table.
var userAgents = map[string]string{
	"net-azure-identity":    "azsdk-net-Identity/",
	"cpp-azure-identity":    "azsdk-cpp-identity/",
	"go-azidentity":         "azsdk-go-azidentity/v",
	"java-azure-identity":   "azsdk-java-azure-identity/",
	"js-azure-identity":     "azsdk-js-identity/",
	"python-azure-identity": "azsdk-python-identity/",
	"rust-azure-identity":   "azsdk-rust-identity/",
}

// TestFirstVersions: for each SDK, the census and the table of docs/migration.md have the same
// first version that does not need the proxy.
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
			t.Errorf("%s: userAgents has no entry for this SDK", name)
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
				t.Errorf("%s%s: got SDK %s, workload identity %s; want %s, %s", agent, version, got.SDK, got.WorkloadIdentity, name, want)
			}
			if want == census.No && !strings.Contains(got.Upgrade, row[1]+"."+row[2]) {
				t.Errorf("%s%s: the advice %q does not name %s.%s", agent, version, got.Upgrade, major, minor)
			}
		}
	}
}

// templateOf returns the pod template of a patch of a Deployment.
func templateOf(t *testing.T, patch []byte) map[string]any {
	t.Helper()
	var deployment struct {
		Spec struct{ Template map[string]any }
	}
	if err := json.Unmarshal(patch, &deployment); err != nil {
		t.Fatalf("%s: %v", patch, err)
	}
	return deployment.Spec.Template
}

// mergePatch applies a JSON merge patch (RFC 7396) of maps.
func mergePatch(target, patch map[string]any) map[string]any {
	merged := make(map[string]any)
	for name, value := range target {
		merged[name] = value
	}
	for name, value := range patch {
		inner, isMap := value.(map[string]any)
		switch {
		case value == nil:
			delete(merged, name)
		case isMap:
			old, _ := merged[name].(map[string]any)
			merged[name] = mergePatch(old, inner)
		default:
			merged[name] = value
		}
	}
	return merged
}

func manifest(t *testing.T, template map[string]any) string {
	t.Helper()
	text, err := json.Marshal(map[string]any{"apiVersion": "apps/v1", "kind": "Deployment",
		"metadata": map[string]any{"name": "app"}, "spec": map[string]any{"template": template}})
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + "\n"
}

// migrateFunc runs a command of imds-migrate on a manifest and returns what it writes.
type migrateFunc func(t *testing.T, command, manifest string, args ...string) string

// buildDir holds what tests share. TestMain removes it.
var buildDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "repo")
	if err != nil {
		panic(err)
	}
	buildDir = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

var buildPrograms = sync.OnceValue(func() error {
	build := exec.Command("go", "build", "-o", buildDir+"/", "./cmd/...")
	build.Dir = repository
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	return nil
})

// binaries returns the directory with all programs, which are built once.
func binaries(t *testing.T) string {
	t.Helper()
	watchSources(t)
	if err := buildPrograms(); err != nil {
		t.Fatal(err)
	}
	return buildDir
}

// migrateBinary returns the path of imds-migrate.
func migrateBinary(t *testing.T) string {
	t.Helper()
	return filepath.Join(binaries(t), "imds-migrate")
}

// runMigrate returns a function that runs the program at a path.
func runMigrate(binary string) migrateFunc {
	return func(t *testing.T, command, manifest string, args ...string) string {
		t.Helper()
		var out, messages bytes.Buffer
		cmd := exec.Command(binary, append([]string{command, "--proxy-image=p:1", "--proxy-init-image=i:1",
			"--tenant-id=22222222-2222-4222-8222-222222222222", "--client-id=11111111-1111-4111-8111-111111111111"}, args...)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(manifest), &out, &messages
		err := cmd.Run()
		// The guide removes the label of aad-pod-identity only after it has added the proxy.
		unexpected := strings.ReplaceAll(messages.String(), "warning: label aadpodidbinding ", "")
		if err != nil || strings.Contains(unexpected, "warning:") {
			t.Fatalf("imds-migrate %s %s: %v: %s", command, args, err, &messages)
		}
		return out.String()
	}
}
