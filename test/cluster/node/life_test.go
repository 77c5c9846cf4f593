package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/entra"
)

// status returns the status of a container of the pod. The test fails if there is none.
func status(t *testing.T, pod *corev1.Pod, name string) corev1.ContainerStatus {
	t.Helper()
	for _, s := range append(append([]corev1.ContainerStatus{}, pod.Status.InitContainerStatuses...), pod.Status.ContainerStatuses...) {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("the pod has no status of container %s: %s", name, cluster.Describe(pod))
	return corev1.ContainerStatus{}
}

// TestSandboxLost kills the pod's sandbox, which removes the network namespace and the
// redirect, as a reboot of the node does. The kubelet creates a new sandbox and runs the
// init containers again, so that clients get tokens again.
func TestSandboxLost(t *testing.T) {
	ctx := startTest(t)
	namespace, subject := appNamespace(ctx, t, nil)
	before := startPod(ctx, t, namespace, client())
	killSandbox(t, before)
	after, err := running.WaitPod(ctx, namespace, before.Name, func(p *corev1.Pod) error {
		for _, name := range []string{inject.ProxyInitName, inject.ProxyName, "fetch", "app"} {
			if status(t, p, name).ContainerID == status(t, before, name).ContainerID {
				return fmt.Errorf("container %s has not been replaced yet: %s", name, cluster.Describe(p))
			}
		}
		return cluster.Running(p)
	})
	if err != nil {
		t.Fatal(err)
	}
	if after.UID != before.UID {
		t.Fatal("the pod was replaced")
	}
	checkInitToken(ctx, t, after, subject)
	getToken(ctx, t, after, subject, "/azidentity")
}

// killSandbox kills the container that keeps the pod's namespaces.
func killSandbox(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	sandbox, err := running.Containerd("containers", "list", "--quiet",
		fmt.Sprintf(`labels."io.kubernetes.pod.uid"==%q,labels."io.cri-containerd.kind"==sandbox`, pod.UID))
	if err != nil || sandbox == "" || strings.Contains(sandbox, "\n") {
		t.Fatalf("sandboxes %q, %v; want one", sandbox, err)
	}
	if _, err := running.Containerd("tasks", "kill", "--signal=SIGKILL", sandbox); err != nil {
		t.Fatal(err)
	}
}

// TestProxyOutOfMemory checks that after the kernel's OOM killer ended the proxy, the
// kubelet restarts it alone, and that clients get tokens again.
func TestProxyOutOfMemory(t *testing.T) {
	ctx := startTest(t)
	namespace, subject := appNamespace(ctx, t, nil)
	before := startPod(ctx, t, namespace, client())
	getToken(ctx, t, before, subject, "/azidentity")
	fillMemory(ctx, t, status(t, before, inject.ProxyName).ContainerID)
	after, err := running.WaitPod(ctx, namespace, before.Name, func(p *corev1.Pod) error {
		if proxy := status(t, p, inject.ProxyName); proxy.RestartCount == 0 {
			return fmt.Errorf("the proxy has not been restarted: %s", cluster.Describe(p))
		}
		return cluster.Running(p)
	})
	if err != nil {
		t.Fatal(err)
	}
	if last := status(t, after, inject.ProxyName).LastTerminationState.Terminated; last == nil || last.Reason != "OOMKilled" {
		t.Errorf("the proxy's last termination was %+v, want OOMKilled", last)
	}
	for _, name := range []string{"app", inject.ProxyInitName} {
		if status(t, after, name).ContainerID != status(t, before, name).ContainerID {
			t.Errorf("container %s was restarted", name)
		}
	}
	getToken(ctx, t, after, subject, "/azidentity", "--scope=https://storage.azure.com/.default")
}

// memoryLine matches the line of the memory controller in /proc/PID/cgroup, for cgroup
// versions 1 and 2.
var memoryLine = regexp.MustCompile(`(?m)^(?:\d+:memory:|0::)(/.+)$`)

// fillMemory makes the container's cgroup run out of memory by writing a file to a tmpfs.
// The file's pages count for the cgroup but belong to no process. The OOM killer therefore
// selects the largest process, which is the container's and not the writer.
func fillMemory(ctx context.Context, t *testing.T, containerID string) {
	t.Helper()
	_, id, _ := strings.Cut(containerID, "://")
	tasks, err := running.Containerd("tasks", "list")
	if err != nil {
		t.Fatal(err)
	}
	pid := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(id) + `\s+(\d+)`).FindStringSubmatch(tasks)
	if pid == nil {
		t.Fatalf("containerd has no task %s:\n%s", id, tasks)
	}
	groups, err := os.ReadFile("/proc/" + pid[1] + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	line := memoryLine.FindStringSubmatch(string(groups))
	if line == nil {
		t.Fatalf("process %s has no memory cgroup:\n%s", pid[1], groups)
	}
	hierarchy := "/sys/fs/cgroup"
	if strings.Contains(line[0], ":memory:") {
		hierarchy += "/memory"
	}
	file := filepath.Join("/run", "fill-"+id)
	t.Cleanup(func() { os.Remove(file) })
	// The error does not matter: the writer may finish, or be killed too.
	output, err := exec.CommandContext(ctx, "sh", "-c", `echo $$ > "$1/cgroup.procs" && exec head -c 512M /dev/zero > "$2"`, "sh",
		filepath.Join(hierarchy, line[1]), file).CombinedOutput()
	os.Remove(file)
	t.Logf("filled the memory of %s: %v %s", line[1], err, output)
}

// TestTokenRotation checks that the proxy uses a new federated token after the kubelet
// replaced the file. The kubelet does so after most of a token's lifetime; here it does so
// because a restart cleared its token cache.
func TestTokenRotation(t *testing.T) {
	ctx := startTest(t)
	namespace, subject := appNamespace(ctx, t, nil)
	pod := startPod(ctx, t, namespace, client())
	first := projected(t, pod)
	running.Entra.Reset()
	getToken(ctx, t, pod, subject, "/azidentity", "--scope=https://storage.azure.com/.default")

	if err := running.RestartKubelet(ctx); err != nil {
		t.Fatal(err)
	}
	err := cluster.Wait(ctx, func(context.Context) error {
		if projected(t, pod) == first {
			return fmt.Errorf("the kubelet has not replaced the token yet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	getToken(ctx, t, pod, subject, "/azidentity", "--scope=https://management.azure.com/.default")
	exchanges := running.Entra.Exchanges()
	before, after := exchanges[0], exchanges[len(exchanges)-1]
	if before.AssertionID == "" || before.AssertionID == after.AssertionID || !after.AssertionFrom.After(before.AssertionFrom) {
		t.Errorf("the first assertion was %s, valid from %v, the last %s, valid from %v; want a different, later one", before.AssertionID, before.AssertionFrom, after.AssertionID, after.AssertionFrom)
	}
	if after.Outcome != entra.OutcomeIssued {
		t.Errorf("the outcome of the last exchange was %s, want %s", after.Outcome, entra.OutcomeIssued)
	}
	if proxy := status(t, pod, inject.ProxyName); proxy.RestartCount != 0 {
		t.Error("the proxy was restarted")
	}
}

// projected returns the federated token that the kubelet wrote for the pod.
func projected(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/var/lib/kubelet/pods/%s/volumes/kubernetes.io~projected/azure-workload-identity-reserved-*/token/azure-identity-token", pod.UID))
	if err != nil || len(files) != 1 {
		t.Fatalf("token files %q, %v; want one", files, err)
	}
	token, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(token)
}
