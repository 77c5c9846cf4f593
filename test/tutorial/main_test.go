package main

import (
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the output of the commands into docs/tutorial.md")

const page = "../../docs/tutorial.md"

// block matches a transcript of the page.
var block = regexp.MustCompile("(?ms)^```console\n(.*?)^```\n")

// Text that differs between runs.
var (
	minute = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\dZ`)
	epoch  = regexp.MustCompile(`-lt \d{10}`)
)

// TestPage replays the commands of docs/tutorial.md one after the other in one shell, and compares their output with the
// page. Run with -update to write it.
func TestPage(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for _, m := range block.FindAllStringSubmatch(string(text), -1) {
		commands = append(commands, commandsOf(m[1])...)
	}
	if len(commands) < 10 {
		t.Fatalf("the page has %d commands", len(commands))
	}
	outputs := replay(t, commands)
	next := 0
	got := block.ReplaceAllStringFunc(string(text), func(old string) string {
		written := "```console\n"
		for range commandsOf(block.FindStringSubmatch(old)[1]) {
			written += "$ " + commands[next] + "\n" + outputs[next]
			next++
		}
		return written + "```\n"
	})
	switch {
	case *update:
		if err := os.WriteFile(page, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	case got != string(text):
		file := filepath.Join(t.TempDir(), "tutorial.md")
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		difference, _ := exec.Command("diff", "-u", page, file).Output() // exit code 1 means that they differ
		t.Errorf("the commands print something else (go test ./test/tutorial -update writes it):\n%s", difference)
	}
}

// TestNamespaces checks that the server has the namespaces of the cluster, which commands with --namespace ask for, and
// no others.
func TestNamespaces(t *testing.T) {
	server, err := serve("cluster")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	for name, want := range map[string]int{"shop": http.StatusOK, "gone": http.StatusNotFound} {
		answer, err := server.Client().Get(server.URL + "/" + before + "/api/v1/namespaces/" + name)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != want || want == http.StatusOK && !strings.Contains(string(body), `"name":"shop"`) {
			t.Errorf("%s: status %d, %v, %s", name, answer.StatusCode, err, body)
		}
	}
}

// commandsOf returns the commands of a transcript. A line that ends with a backslash continues.
func commandsOf(transcript string) (commands []string) {
	continues := false
	for line := range strings.Lines(transcript) {
		line = strings.TrimSuffix(line, "\n")
		switch command, isCommand := strings.CutPrefix(line, "$ "); {
		case continues:
			commands[len(commands)-1] += "\n" + line
		case isCommand:
			commands = append(commands, command)
		default:
			continue
		}
		continues = strings.HasSuffix(line, `\`)
	}
	return commands
}

// replay runs the commands beside a server with the cluster, and returns the output of each.
func replay(t *testing.T, commands []string) []string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "bin", "imds-migrate"), "../../cmd/imds-migrate")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, part := range []string{"cluster", "manifests"} {
		if err := os.CopyFS(filepath.Join(dir, "test/tutorial", part), os.DirFS(part)); err != nil {
			t.Fatal(err)
		}
	}
	server, err := serve("cluster")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := server.WriteKubeconfig(filepath.Join(dir, "kubeconfig"), times...); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), authority, 0o600); err != nil {
		t.Fatal(err)
	}
	const mark = "\x01\n"
	script := "last=0\n"
	for _, c := range commands {
		script += fmt.Sprintf("(exit $last)\n%s\nlast=$?\nprintf '\\001\\n'\n", c)
	}
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "KUBECONFIG="+filepath.Join(dir, "kubeconfig"), "SSL_CERT_FILE="+filepath.Join(dir, "ca.crt"), "HOME="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	all := strings.ReplaceAll(string(out), server.Issuer(), "https://oidc.example.test/shop")
	all = epoch.ReplaceAllString(minute.ReplaceAllString(all, "2026-12-01 10:00Z"), "-lt 1796205600")
	outputs := strings.Split(strings.TrimSuffix(all, mark), mark)
	if len(outputs) != len(commands) {
		t.Fatalf("%d commands have %d outputs:\n%s", len(commands), len(outputs), all)
	}
	return outputs
}
