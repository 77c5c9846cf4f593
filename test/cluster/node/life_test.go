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

// status is how a container of the pod is.
func status(t *testing.T, pod *corev1.Pod, name string) corev1.ContainerStatus {
	t.Helper()
	for _, s := range append(append([]corev1.ContainerStatus{}, pod.Status.InitContainerStatuses...), pod.Status.ContainerStatuses...) {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no container %s: %s", name, cluster.Describe(pod))
	return corev1.ContainerStatus{}
}

// TestSandboxLost: the pod's network namespace goes, and the redirect with it, as when
// a node is rebooted. The kubelet makes another, and runs the init containers again.
func TestSandboxLost(t *testing.T) {
	ctx := begin(t)
	namespace, subject := appNamespace(ctx, t, nil)
	before := startPod(ctx, t, namespace, client())
	sandbox, err := running.Containerd("containers", "list", "--quiet",
		fmt.Sprintf(`labels."io.kubernetes.pod.uid"==%q,labels."io.cri-containerd.kind"==sandbox`, before.UID))
	if err != nil || sandbox == "" || strings.Contains(sandbox, "\n") {
		t.Fatalf("sandboxes %q, %v; want one", sandbox, err)
	}
	if _, err := running.Containerd("tasks", "kill", "--signal=SIGKILL", sandbox); err != nil {
		t.Fatal(err)
	}
	after, err := running.WaitPod(ctx, namespace, before.Name, func(p *corev1.Pod) error {
		for _, name := range []string{inject.ProxyInitName, inject.ProxyName, "fetch", "app"} {
			if status(t, p, name).ContainerID == status(t, before, name).ContainerID {
				return fmt.Errorf("%s is still the container that it was: %s", name, cluster.Describe(p))
			}
		}
		return cluster.Running(p)
	})
	if err != nil {
		t.Fatal(err)
	}
	if after.UID != before.UID {
		t.Fatal("it is another pod")
	}
	checkInitToken(ctx, t, after, subject)
	getToken(ctx, t, after, subject, "/azidentity")
}

// TestProxyOutOfMemory: the kernel kills the proxy for want of memory. The kubelet
// starts it again; the application and the redirect stay, and the next token comes.
func TestProxyOutOfMemory(t *testing.T) {
	ctx := begin(t)
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
		t.Errorf("the proxy's last end was %+v, want OOMKilled", last)
	}
	for _, name := range []string{"app", inject.ProxyInitName} {
		if status(t, after, name).ContainerID != status(t, before, name).ContainerID {
			t.Errorf("%s was started again", name)
		}
	}
	getToken(ctx, t, after, subject, "/azidentity", "--scope=https://storage.azure.com/.default")
}

// memoryLine is what /proc/PID/cgroup says of the memory controller, in either version.
var memoryLine = regexp.MustCompile(`(?m)^(?:\d+:memory:|0::)(/.+)$`)

// fillMemory uses up the memory of a container's cgroup, by pages of a file in memory:
// they are no process's, so that the kernel ends the largest process, which is the
// container's own and not the one that writes.
func fillMemory(ctx context.Context, t *testing.T, containerID string) {
	t.Helper()
	_, id, _ := strings.Cut(containerID, "://")
	tasks, err := running.Containerd("tasks", "list")
	if err != nil {
		t.Fatal(err)
	}
	pid := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(id) + `\s+(\d+)`).FindStringSubmatch(tasks)
	if pid == nil {
		t.Fatalf("%s is not among\n%s", id, tasks)
	}
	groups, err := os.ReadFile("/proc/" + pid[1] + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	line := memoryLine.FindStringSubmatch(string(groups))
	if line == nil {
		t.Fatalf("no memory cgroup among\n%s", groups)
	}
	hierarchy := "/sys/fs/cgroup"
	if strings.Contains(line[0], ":memory:") {
		hierarchy += "/memory"
	}
	file := filepath.Join("/run", "fill-"+id)
	t.Cleanup(func() { os.Remove(file) })
	// It ends with the file full or killed, and either is well.
	output, err := exec.CommandContext(ctx, "sh", "-c", `echo $$ > "$1/cgroup.procs" && exec head -c 512M /dev/zero > "$2"`, "sh",
		filepath.Join(hierarchy, line[1]), file).CombinedOutput()
	os.Remove(file)
	t.Logf("filled the memory of %s: %v %s", line[1], err, output)
}

// TestTokenRotation: the kubelet writes another federated token in the place of the
// first, as it does when most of the first one's life is over; here since it has been
// restarted, and knows of none. The proxy trades the new one.
func TestTokenRotation(t *testing.T) {
	ctx := begin(t)
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
			return fmt.Errorf("the token is still the first one")
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
		t.Errorf("tokens %s of %v, then %s of %v were traded; want a later one", before.AssertionID, before.AssertionFrom, after.AssertionID, after.AssertionFrom)
	}
	if after.Outcome != entra.OutcomeIssued {
		t.Errorf("the outcome was %s", after.Outcome)
	}
	if proxy := status(t, pod, inject.ProxyName); proxy.RestartCount != 0 {
		t.Error("the proxy was restarted")
	}
}

// projected is the federated token that the kubelet has written for the pod.
func projected(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/var/lib/kubelet/pods/%s/volumes/kubernetes.io~projected/azure-workload-identity-reserved-*/token/azure-identity-token", pod.UID))
	if err != nil || len(files) != 1 {
		t.Fatalf("tokens %q, %v; want one", files, err)
	}
	token, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(token)
}
