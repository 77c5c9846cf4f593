package repo

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// guideValues are what a reader of docs/migration.md puts in place of the placeholders. They
// fit testdata/migration.
var guideValues = map[string]string{
	"<CLUSTER>": "shop-cluster", "<CLUSTER_RESOURCE_GROUP>": "shop-clusters", "<SCALE_SET>": "aks-nodes",
	"<NAMESPACE>": "shop", "<DEPLOYMENT>": "cart", "<CONTAINER>": "cart", "<SERVICE_ACCOUNT>": "cart", "<DIRECTORY>": "manifests",
	"<ISSUER_URL>": "https://oidc.example.test/cluster/", "<REGISTRY>": "registry.example.test/team", "<VERSION>": "v0.1.0",
	"<IDENTITY>": "cart", "<RESOURCE_GROUP>": "shop", "<RESOURCE_ID>": "/subscriptions/s/resourceGroups/shop/providers/p/cart",
}

// guideStubs stand in for the commands that need a cluster, Azure or a network. They print what
// the guide looks for, and keep kubectl's patches.
var guideStubs = map[string]string{
	"az": `case "$*" in
*clientId*) echo 11111111-1111-4111-8111-111111111111 ;;
*tenantId*) echo 22222222-2222-4222-8222-222222222222 ;;
*principalId*) echo 44444444-4444-4444-8444-444444444444 ;;
*) echo something ;;
esac`,
	"kubectl": `case "$*" in
*" run try "*) echo "image: registry.example.test/try" ;;
*" set env "*) echo "HTTP_PROXY=http://proxy.example.test:3128" ;;
*" logs "*) echo "new caller" ;;
*" patch "*) while [ "$1" != --patch ]; do shift; done; echo "$2" >"patch-$(ls | grep -c ^patch-)" ;;
esac`,
	"curl": "true",
	"make": "true", // what it would build is there
}

// guideBlock is a block of shell commands and the headings above it.
type guideBlock struct{ section, way, text string }

// guideBlocks returns the shell blocks of a page, in order.
func guideBlocks(t *testing.T, page string) []guideBlock {
	t.Helper()
	var all []guideBlock
	var section, way string
	found := regexp.MustCompile("(?ms)^(##+) ([^\n]*)$|^( *)```sh\n(.*?)^ *```$").FindAllStringSubmatch(read(t, page), -1)
	for _, m := range found {
		switch {
		case m[1] == "##":
			section, way = m[2], ""
		case m[1] != "":
			way = m[2]
		default:
			text := strings.ReplaceAll("\n"+m[4], "\n"+m[3], "\n")
			all = append(all, guideBlock{section, way, text})
		}
	}
	return all
}

// follow runs the blocks that are chosen in one shell, as a reader would, with imds-migrate on
// the manifests of testdata/migration. It returns the directory that they ran in. The shell ends
// at the first command that fails and at a variable that no block has set before.
func follow(t *testing.T, migrate string, choose func(guideBlock) bool) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "manifests"), os.DirFS("testdata/migration")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "stubs")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, script := range guideStubs {
		if err := os.WriteFile(filepath.Join(path, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(migrate, filepath.Join(dir, "bin", "imds-migrate")); err != nil {
		t.Fatal(err)
	}

	blocks := slices.DeleteFunc(guideBlocks(t, "docs/migration.md"), func(b guideBlock) bool { return !choose(b) })
	script := "set -eu\n"
	for _, b := range blocks {
		script += b.text
	}
	script = regexp.MustCompile(`<[A-Z_]+>`).ReplaceAllStringFunc(script, func(placeholder string) string {
		if guideValues[placeholder] == "" {
			t.Errorf("no value is known for %s", placeholder)
		}
		return guideValues[placeholder]
	})
	cmd := exec.Command("sh")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + path + ":/usr/bin:/bin"}
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(script), &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%d blocks of docs/migration.md: %v\n%s", len(blocks), err, &out)
	}
	return dir
}

// until chooses the blocks of one way, up to and including a section.
func until(way, last string) func(guideBlock) bool {
	passed := false
	return func(b guideBlock) bool {
		passed = passed || strings.HasPrefix(b.section, last)
		return (!passed || strings.HasPrefix(b.section, last)) && (b.way == "" || b.way == way) && b.section != "Go back"
	}
}

// TestGuideIsFollowed: every command of docs/migration.md runs in its order, with each variable
// set before it is used, whichever way is chosen.
func TestGuideIsFollowed(t *testing.T) {
	if n := len(guideBlocks(t, "docs/migration.md")); n < 20 {
		t.Fatalf("found %d blocks of commands, want at least 20: the pattern does not match", n)
	}
	migrate := migrateBinary(t)
	for _, way := range []string{"Webhook", "imds-migrate", "Kustomize"} {
		t.Run(way, func(t *testing.T) { follow(t, migrate, until(way, "never")) })
	}
}

// TestGuideOnManifests follows the way with imds-migrate on an application with msrestazure on
// aad-pod-identity.
func TestGuideOnManifests(t *testing.T) {
	manifests := func(dir string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, "manifests", "cart.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	check := func(step, text string, want, unwanted []string) {
		t.Helper()
		for _, s := range want {
			if !strings.Contains(text, s) {
				t.Errorf("%s: no %q in\n%s", step, s, text)
			}
		}
		for _, s := range unwanted {
			if strings.Contains(text, s) {
				t.Errorf("%s: %q is in\n%s", step, s, text)
			}
		}
	}
	migrate := migrateBinary(t)
	before := read(t, "test/repo/testdata/migration/cart.yaml")

	with := manifests(follow(t, migrate, until("imds-migrate", "7.")))
	check("step 7", with, []string{"name: azwi-proxy-init", "PROXY_IDENTITY", "containerPort: 8001",
		"image: registry.example.test/team/imds-oidc-proxy:v0.1.0", "name: AZURE_POD_IDENTITY_AUTHORITY_HOST"}, nil)
	if n := strings.Count(with, "name: azwi-proxy-init"); n != 1 {
		t.Errorf("step 7: %d redirects, want 1: the CronJob asks for none", n)
	}

	without := manifests(follow(t, migrate, until("imds-migrate", "12.")))
	check("step 12", without, []string{"name: AZURE_FEDERATED_TOKEN_FILE", `azure.workload.identity/use: "true"`, "serviceAccountToken:",
		"# Python 3.11, msrestazure 0.6.4", "aadpodidbinding: cart"}, []string{"azwi-proxy", "inject-proxy-sidecar", " imds-oidc-proxy/", "AZURE_POD_IDENTITY_AUTHORITY_HOST"})

	step7 := until("imds-migrate", "7.")
	back := manifests(follow(t, migrate, func(b guideBlock) bool { return step7(b) || b.section == "Go back" }))
	if back != before {
		t.Errorf("gone back: got\n%s\nwant\n%s", back, before)
	}
}

// TestGuidePatches: with the patches of the way with the webhook, the pod has the port that its
// callers are read from, and after the last step the application has its token and no proxy.
func TestGuidePatches(t *testing.T) {
	binary := migrateBinary(t)
	dir := follow(t, binary, until("Webhook", "12."))
	patch := func(n string) map[string]any {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, "patch-"+n))
		if err != nil {
			t.Fatal(err)
		}
		return templateOf(t, text)
	}
	forwarded := regexp.MustCompile(`port-forward "deployment/\$APP" (\d+)`).FindStringSubmatch(read(t, "docs/migration.md"))
	if forwarded == nil {
		t.Fatal("no port is forwarded")
	}
	template := map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"aadpodidbinding": "cart"}},
		"spec":     map[string]any{"containers": []any{map[string]any{"name": "app", "image": "app"}}},
	}
	migrate := runMigrate(binary)

	pod := mergePatch(mergePatch(template, patch("0")), patch("1"))
	with := migrate(t, "inject", manifest(t, pod))
	if want := `"containerPort": ` + forwarded[1]; !strings.Contains(with, "azwi-proxy-init") || !strings.Contains(with, want) {
		t.Errorf("after step 7: no proxy, or no port %s:\n%s", forwarded[1], with)
	}
	if !strings.Contains(with, `"serviceAccountName":"cart"`) {
		t.Errorf("after step 7: not the service account:\n%s", with)
	}
	without := migrate(t, "uninject", with)
	if without != manifest(t, pod) {
		t.Errorf("removed: got %s, want %s", without, manifest(t, pod))
	}

	pod = mergePatch(pod, patch("2"))
	if strings.Contains(manifest(t, pod), "aadpodidbinding") {
		t.Errorf("after step 9: the label of aad-pod-identity is there: %s", manifest(t, pod))
	}
	last := migrate(t, "inject", manifest(t, mergePatch(pod, patch("3"))))
	if strings.Contains(last, "azwi-proxy") || !strings.Contains(last, "AZURE_FEDERATED_TOKEN_FILE") {
		t.Errorf("after step 12: a proxy, or no token:\n%s", last)
	}
}
