//go:build images

package images

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/pod"
)

// hardened returns podman arguments for the settings of containers in deploy/: a read-only root file
// system without writable mounts, no new privileges, and no capabilities except added ones. The
// network is the namespace of the test, as all containers of a pod share one. The limits are lower
// than the defaults of the container runtime, which the test may not be allowed to set.
func hardened(args ...string) []string {
	return append([]string{"--runtime=runc", "--cgroup-manager=cgroupfs", "run", "--pull=never", "--network=host",
		"--read-only", "--read-only-tmpfs=false", "--security-opt=no-new-privileges", "--cap-drop=all",
		"--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"}, args...)
}

// TestPod runs the images as in a pod, and an application that requests a token from the metadata
// address.
func TestPod(t *testing.T) {
	build(t)
	for what, images := range map[string]set{"Dockerfiles": fromDockerfiles, "release": released()} {
		t.Run(what, func(t *testing.T) { testPod(t, images) })
	}
}

func testPod(t *testing.T, images set) {
	decoy, err := pod.StartDecoy()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { decoy.Close() })

	for _, image := range []string{images.init, images.native} {
		// Without capabilities it must fail and name the missing one.
		out, err := exec.Command("podman", hardened("--rm", image)...).CombinedOutput()
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 3 || !strings.Contains(string(out), "NET_ADMIN") {
			t.Errorf("%s without NET_ADMIN: %v, want exit code 3 and the name of the capability: %s", image, err, out)
		}
		out, err = exec.Command("podman", hardened("--rm", "--cap-add=NET_ADMIN", image)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "redirect installed") || !strings.Contains(string(out), `"backend":"native"`) {
			t.Fatalf("%s with NET_ADMIN: %v: %s", image, err, out)
		}
		command(t, nil, "podman", hardened("--rm", "--cap-add=NET_ADMIN", image, "--check")...)
		command(t, nil, "podman", hardened("--rm", "--cap-add=NET_ADMIN", image, "--cleanup")...)
	}
	// The default image also has iptables. The other one says that it has not.
	command(t, nil, "podman", hardened("--rm", "--cap-add=NET_ADMIN", images.init, "--backend=nft")...)
	out, err := exec.Command("podman", hardened("--rm", "--cap-add=NET_ADMIN", images.native, "--backend=nft")...).CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 4 || !strings.Contains(string(out), "no iptables-nft") {
		t.Errorf("%s with --backend=nft: %v, want exit code 4: %s", images.native, err, out)
	}
	command(t, nil, "podman", hardened("--rm", "--cap-add=NET_ADMIN", images.native)...) // it replaces the rules of iptables

	server := startEntra(t)
	container := startProxy(t, images.proxy, server)
	checkProcess(t, command(t, nil, "podman", "inspect", "--format={{.State.Pid}}", container))

	answer := askMetadataAddress(t)
	if _, err := server.VerifyAccessToken(answer); err != nil {
		t.Errorf("the application's token is not from the stand-in for Entra: %v", err)
	}
	if got := decoy.Requests(); len(got) != 0 {
		t.Errorf("the decoy of the real IMDS got requests: %q", got)
	}
	command(t, nil, "podman", "stop", "--time=10", container)
	if got := command(t, nil, "podman", "inspect", "--format={{.State.ExitCode}}", container); got != "0" {
		t.Errorf("exit code of the proxy after SIGTERM: %s, want 0", got)
	}
}

// standIn is a stand-in for Entra, and the volumes that the pods mount.
type standIn struct {
	*entra.Server
	ca    string // directory of ca.pem
	token *entra.ProjectedToken
}

func startEntra(t *testing.T) standIn {
	t.Helper()
	server, err := entra.Start(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	server.AddApplication(entra.Application{ClientID: pod.ClientID, Credentials: []entra.FederatedCredential{{Subject: pod.Subject}}})

	volumes, err := os.MkdirTemp(os.Getenv(storageVar), "volumes-")
	if err != nil {
		t.Fatal(err)
	}
	ca, volume := filepath.Join(volumes, "ca"), filepath.Join(volumes, "token")
	if err := os.Chmod(volumes, 0o755); err != nil { // for the proxy's user
		t.Fatal(err)
	}
	for _, dir := range []string{ca, volume} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := server.WriteCA(filepath.Join(ca, "ca.pem")); err != nil {
		t.Fatal(err)
	}
	token, err := server.ProjectToken(entra.ProjectedTokenConfig{Dir: volume, Subject: pod.Subject})
	if err != nil {
		t.Fatal(err)
	}
	return standIn{server, ca, token}
}

// startProxy starts the sidecar as the user of the image, and waits until the probe of the postStart hook succeeds.
func startProxy(t *testing.T, image string, server standIn) string {
	t.Helper()
	const mounted = "/var/run/secrets/azure/wi/token"
	volume, file := filepath.Split(server.token.Path())
	container := command(t, nil, "podman", hardened("--detach",
		"--volume="+volume+":"+mounted+":ro", "--volume="+server.ca+":/ca:ro",
		"--env=AZURE_CLIENT_ID="+pod.ClientID, "--env=AZURE_TENANT_ID="+server.TenantID(),
		"--env=AZURE_AUTHORITY_HOST="+server.AuthorityHost(), "--env=PROXY_CA_FILE=/ca/ca.pem",
		"--env=AZURE_FEDERATED_TOKEN_FILE="+mounted+"/"+file,
		image)...)
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := exec.Command("podman", "logs", container).CombinedOutput()
			t.Logf("the proxy's log:\n%s", log)
		}
		_ = exec.Command("podman", "--runtime=runc", "--cgroup-manager=cgroupfs", "rm", "--force", "--time=0", container).Run()
	})
	command(t, nil, "podman", "--runtime=runc", "--cgroup-manager=cgroupfs", "exec", container, "/proxy", "--probe", "--probe-timeout=20s")
	return container
}

// checkProcess checks the privileges of the process in /proc, and not only its configuration.
func checkProcess(t *testing.T, pid string) {
	t.Helper()
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{
		"Uid": "1501\t1501\t1501\t1501", "Gid": "1501\t1501\t1501\t1501", "NoNewPrivs": "1",
		"Seccomp": "2", // a filter, such as the runtime's default profile
		"CapInh":  "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		match := regexp.MustCompile(`(?m)^` + field + `:\s+(.*)$`).FindStringSubmatch(string(status))
		if match == nil || match[1] != want {
			t.Errorf("the proxy's process has %s %q, want %q", field, match, want)
		}
	}
	mounts, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	root := regexp.MustCompile(`(?m)^\S+ \S+ \S+ \S+ / (\S+)`).FindStringSubmatch(string(mounts))
	if root == nil || !strings.HasPrefix(root[1], "ro,") && root[1] != "ro" {
		t.Errorf("the root file system is mounted %q, want read-only", root)
	}
	memory := regexp.MustCompile(`(?m)^VmRSS:\s+(.*)$`).FindStringSubmatch(string(status))
	t.Logf("the proxy's resident memory: %v", memory)
}

// askMetadataAddress requests a token from 169.254.169.254, as the application does.
func askMetadataAddress(t *testing.T) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet,
		"http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Metadata", "true")
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Proxy: nil}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", resp.Status, body)
	}
	if by := resp.Header.Get("Server"); !strings.HasPrefix(by, "imds-oidc-proxy") {
		t.Errorf("%s answered", fmt.Sprintf("%q", by))
	}
	return answer.AccessToken
}
