package manifests

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	appsv1 "k8s.io/api/apps/v1"
)

// programsDir is removed after the tests. It is empty until a test has built the programs.
var programsDir string

// programs builds both commands, once for all tests.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "manifests-")
	if err != nil {
		return "", err
	}
	programsDir = dir
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/proxy", "./cmd/proxy-init")
	cmd.Dir = repository
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", &buildError{string(out)}
	}
	return dir, nil
})

type buildError struct{ output string }

func (e *buildError) Error() string { return e.output }

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(programsDir) // does nothing for an empty path
	os.Exit(code)
}

// program runs a command with only the given environment, and returns its output and its exit code.
func program(t *testing.T, name string, args, env []string) (string, int) {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, name), args...)
	cmd.Env = append([]string{}, env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run() // the caller checks the exit code
	return out.String(), cmd.ProcessState.ExitCode()
}

// podUID is the UID of every pod.
const podUID = "0b9c1d2e-3f40-4516-8273-94a5b6c7d8e9"

// environment returns the environment variables of a container.
func environment(v variant, c *corev1.Container) []string {
	var env []string
	for name, value := range v.config {
		if len(c.EnvFrom) > 0 {
			env = append(env, name+"="+value)
		}
	}
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "metadata.uid" {
			value = podUID
		}
		env = append(env, e.Name+"="+value)
	}
	slices.Sort(env)
	return env
}

// known returns the variables in --help. The help of proxy lists flags, and states how the variables are
// named after them.
func known(t *testing.T, name string) map[string]bool {
	t.Helper()
	help, code := program(t, name, []string{"--help"}, nil)
	if code != 0 {
		t.Fatalf("%s --help: exit code %d: %s", name, code, help)
	}
	variables := map[string]bool{"GOMEMLIMIT": true} // Go's own
	for _, v := range regexp.MustCompile(`\b(?:AZURE|PROXY|METADATA)_[A-Z_]+\b`).FindAllString(help, -1) {
		variables[v] = true
	}
	if name == "proxy" {
		for _, flag := range regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z-]+)`).FindAllStringSubmatch(help, -1) {
			variables["PROXY_"+strings.TrimPrefix(strings.ToUpper(strings.ReplaceAll(flag[1], "-", "_")), "PROXY_")] = true
		}
	}
	return variables
}

// TestVariablesAreKnown checks for misspelled variables, which the programs would ignore silently.
func TestVariablesAreKnown(t *testing.T) {
	for _, name := range variants {
		v := load(t, name)
		for container, binary := range map[string]string{sidecarName: "proxy", initName: "proxy-init"} {
			c := v.container(container)
			if c == nil {
				continue
			}
			variables := known(t, binary)
			for _, e := range environment(v, c) {
				if variable, _, _ := strings.Cut(e, "="); !variables[variable] {
					t.Errorf("%s: %s has the variable %s, which %s does not read", name, container, variable, binary)
				}
			}
		}
	}
}

// TestProxyAcceptsItsSettings runs the proxy with the settings of the manifest and --version: it
// validates the flags and variables, and exits before it listens.
func TestProxyAcceptsItsSettings(t *testing.T) {
	for _, name := range variants {
		v := load(t, name)
		proxy := v.container(sidecarName)
		commands := map[string][]string{"start": proxy.Args}
		if hook := postStart(proxy); hook != nil {
			commands["postStart hook"] = hook[1:]
		}
		for what, args := range commands {
			out, code := program(t, "proxy", append(slices.Clone(args), "--version"), environment(v, proxy))
			if code != 0 {
				t.Errorf("%s: %s with %q: exit code %d: %s", name, what, args, code, out)
			}
		}
	}
	if _, code := program(t, "proxy", []string{"--version"}, []string{"PROXY_IMDS_PASSTHROUGH=of"}); code == 0 {
		t.Error("an invalid value is accepted, so this test is vacuous")
	}
}

// TestProxyInitAcceptsItsSettings checks the rules that proxy-init would install with the settings of the
// manifest.
func TestProxyInitAcceptsItsSettings(t *testing.T) {
	for _, c := range []struct {
		variant string
		sealed  bool
	}{{"deployment", false}, {"job", false}, {"sealed", true}} {
		v := load(t, c.variant)
		proxyInit := v.container(initName)
		rules, code := program(t, "proxy-init", append(slices.Clone(proxyInit.Args), "--dry-run"), environment(v, proxyInit))
		if code != 0 {
			t.Errorf("%s: exit code %d: %s", c.variant, code, rules)
			continue
		}
		if want := "redirect to :8000"; !strings.Contains(rules, want) {
			t.Errorf("%s: no rule with %q in\n%s", c.variant, want, rules)
		}
		if exempt := strings.Contains(rules, "dnat"); exempt == c.sealed {
			t.Errorf("%s: user 1501 is exempt: %v, want %v:\n%s", c.variant, exempt, !c.sealed, rules)
		}
		if deny := strings.Contains(rules, "168.63.129.16"); deny != c.sealed {
			t.Errorf("%s: the wire server is rejected: %v, want %v:\n%s", c.variant, deny, c.sealed, rules)
		}
	}
}

// TestCheckWithoutRedirect checks that `proxy check` without flags does not report a missing redirect as a
// fault if the manifest installs none.
func TestCheckWithoutRedirect(t *testing.T) {
	for _, c := range []struct {
		variant  string
		intended bool
	}{{"dev-pod", true}, {"no-redirect", true}, {"deployment", false}, {"sealed", false}} {
		v := load(t, c.variant)
		port := freePort(t)
		// No request leaves the machine: in place of the metadata address there is a loopback port
		// whose connections get no answer, as if they could not leave.
		env := append(environment(v, v.container(sidecarName)),
			"PROXY_PORT="+port, "AZURE_AUTHORITY_HOST=https://127.0.0.1:1/", "PROXY_IMDS_ADDRESS=http://"+silentAddress(t))
		out, _ := program(t, "proxy", []string{"check"}, env)
		if intended := strings.Contains(out, ", as intended; "); intended != c.intended {
			t.Errorf("%s: the missing redirect is intended: %v, want %v:\n%s", c.variant, intended, c.intended, out)
		}
		if c.intended && strings.Contains(out, "FAIL     redirect") {
			t.Errorf("%s: an intended missing redirect is reported as a fault:\n%s", c.variant, out)
		}
	}
}

// silentAddress returns an address whose connections get no answer.
func silentAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener.Addr().String()
}

// TestPortsAgree checks that the redirect's port is that of the sidecar.
func TestPortsAgree(t *testing.T) {
	for _, name := range []string{"deployment", "job", "sealed"} {
		v := load(t, name)
		ports := map[string]string{}
		for _, container := range []string{sidecarName, initName} {
			ports[container] = "8000" // both programs' default
			for _, e := range environment(v, v.container(container)) {
				if port, ok := strings.CutPrefix(e, "PROXY_PORT="); ok {
					ports[container] = port
				}
			}
		}
		if ports[sidecarName] != ports[initName] {
			t.Errorf("%s: the redirect's port is %s, the proxy's port is %s", name, ports[initName], ports[sidecarName])
		}
	}
}

// TestWebhookImages checks that the patch of the Deployment sets the two variables that
// azure-workload-identity v1.6.0 reads (its pkg/config), and no others.
func TestWebhookImages(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(deployDir, "azwi-webhook", "proxy-images.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	patch := decode(t, string(text)).(*appsv1.Deployment)
	got := map[string]string{}
	for _, e := range patch.Spec.Template.Spec.Containers[0].Env {
		got[e.Name] = e.Value
	}
	v := load(t, "deployment")
	for variable, container := range map[string]string{"PROXY_IMAGE": sidecarName, "PROXY_INIT_IMAGE": initName} {
		if want := v.container(container).Image; got[variable] != want {
			t.Errorf("%s=%q, want %q as in deploy/deployment", variable, got[variable], want)
		}
	}
	if len(got) != 2 {
		t.Errorf("sets %v, want only PROXY_IMAGE and PROXY_INIT_IMAGE", got)
	}
}
