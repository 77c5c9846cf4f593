package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"imds-oidc-proxy/internal/cnirequest"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
)

const (
	// cniRelease is the namespace of the chart with the CNI plugin. The redirect of its pods is
	// cni-forward, without an annotation.
	cniRelease = "imds-cni"

	// cniDaemonSet is the name of the chart's DaemonSet.
	cniDaemonSet = "imds-cni"

	// cniTimeout limits each test of TestCNI. Thirty pods at the same time take some minutes.
	cniTimeout = 8 * time.Minute

	// upgradePods is how many pods are created while the plugin is upgraded.
	upgradePods = 30

	// noRedirect is the exit code of proxy-init, or of the proxy, if the plugin did not run.
	noRedirect = 13
)

// installCNI installs the chart with the CNI plugin, or changes its values, and waits until the
// DaemonSet is ready.
func installCNI(ctx context.Context, t *testing.T, values ...string) {
	t.Helper()
	values = append([]string{"fullnameOverride=imds", "replicas=1", "redirect=cni-forward",
		"webhook.namespaceSelector[0].key=" + webhookLabel, "webhook.namespaceSelector[0].operator=In", "webhook.namespaceSelector[0].values[0]=cni",
		"cni.enabled=true", "cni.binDir=" + running.CNIPrograms(), "cni.confDir=" + running.CNIConfig()}, values...)
	if err := running.InstallChart(ctx, cniRelease, values...); err != nil {
		t.Fatal(err)
	}
}

// removeDaemonSet deletes the DaemonSet, and waits until its pods are gone. The plugin stays on
// the node, as after a helm uninstall without cni.uninstall.
func removeDaemonSet(ctx context.Context, t *testing.T) {
	t.Helper()
	foreground := metav1.DeletePropagationForeground
	err := running.Client.AppsV1().DaemonSets(cniRelease).Delete(ctx, cniDaemonSet, metav1.DeleteOptions{PropagationPolicy: &foreground})
	if err != nil {
		t.Fatal(err)
	}
	err = cluster.Wait(ctx, func(ctx context.Context) error {
		pods, err := running.Client.CoreV1().Pods(cniRelease).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=imds-oidc-proxy-cni"})
		if err == nil && len(pods.Items) > 0 {
			err = errors.New("the DaemonSet's pod is not gone yet")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// cniFiles returns the names, modes, owners and contents of the files in the node's CNI
// directories. Programs other than this project's are left out.
func cniFiles(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	for _, dir := range []string{running.CNIPrograms(), running.CNIConfig()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			stat := info.Sys().(*syscall.Stat_t)
			fmt.Fprintf(&text, "%s %s %d:%d\n", filepath.Join(dir, e.Name()), info.Mode(), stat.Uid, stat.Gid)
			if dir == running.CNIConfig() {
				fmt.Fprintln(&text, readList(t, e.Name()))
			}
		}
	}
	return text.String()
}

func readList(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(running.CNIConfig(), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// once makes the pod's container get one token and end.
func once(p *corev1.PodTemplateSpec) {
	p.Spec.Containers[0].Command = nil // the image's entry point, the client
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
}

// cniNamespace creates a namespace for the pods of the chart with the CNI plugin, which enforces
// the Pod Security level restricted.
func cniNamespace(ctx context.Context, t *testing.T) (namespace, subject string) {
	t.Helper()
	return appNamespace(ctx, t, map[string]string{webhookLabel: "cni", "pod-security.kubernetes.io/enforce": "restricted"})
}

// create creates a pod, which is deleted at the end of the test.
func create(ctx context.Context, t *testing.T, namespace, name string, template corev1.PodTemplateSpec) {
	t.Helper()
	if err := tryCreate(ctx, t, namespace, name, template); err != nil {
		t.Fatal(err)
	}
}

func tryCreate(ctx context.Context, t *testing.T, namespace, name string, template corev1.PodTemplateSpec) error {
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Name = name
	t.Cleanup(func() { deletePod(namespace, name) })
	_, err := running.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
	return err
}

// waitFor waits for a condition of a pod, and returns the pod.
func waitFor(ctx context.Context, t *testing.T, namespace, name string, condition func(*corev1.Pod) error) *corev1.Pod {
	t.Helper()
	pod, err := running.WaitPod(ctx, namespace, name, condition)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// withoutRedirect is a condition for a pod on a node without the plugin: its first init container,
// which is the validator or the proxy, has ended with the exit code and the message, and no other
// container has started.
func withoutRedirect(pod *corev1.Pod) error {
	all := slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses)
	for i, s := range all {
		ended := s.State.Terminated
		if ended == nil {
			ended = s.LastTerminationState.Terminated
		}
		switch {
		case i == 0 && (ended == nil || ended.ExitCode != noRedirect || !strings.Contains(ended.Message, "the CNI plugin did not run on this node")):
			return errors.New(cluster.Describe(pod))
		case i > 0 && (s.State.Running != nil || ended != nil):
			return fmt.Errorf("container %s has started without the redirect: %s", s.Name, cluster.Describe(pod))
		}
	}
	if len(all) == 0 {
		return errors.New(cluster.Describe(pod))
	}
	return nil
}

// waitForEvent waits for an event of a pod that contains text.
func waitForEvent(ctx context.Context, t *testing.T, namespace, name, text string) {
	t.Helper()
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		events, err := running.Client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
		if err != nil {
			return err
		}
		var all []string
		for _, e := range events.Items {
			if strings.Contains(e.Message, text) {
				return nil
			}
			all = append(all, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("no event of %s has %q:\n%s", name, text, strings.Join(all, "\n"))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCNI tests the CNI plugin in the order of its life on a node: installed by the chart,
// disturbed in several ways, and removed. All pods are in namespaces that enforce restricted.
func TestCNI(t *testing.T) {
	var before string
	for _, step := range []struct {
		name string
		test func(ctx context.Context, t *testing.T)
	}{
		{"Install", func(ctx context.Context, t *testing.T) {
			before = cniFiles(t)
			installCNI(ctx, t)
			if list := readList(t, cluster.CNIList); !strings.Contains(list, `{"type":"imds-cni"`) {
				t.Errorf("the node's list is\n%s", list)
			}
		}},
		{"Deployment", testCNIDeployment},
		{"Sealed", testCNISealed},
		{"NoValidator", testCNINoValidator},
		{"Job", testCNIJob},
		{"CronJob", testCNICronJob},
		{"NotAsking", testCNINotAsking},
		{"Refused", testCNIRefused},
		{"Taint", testCNITaint},
		{"SandboxLost", testCNISandboxLost},
		{"ContainerdRestarted", testCNIContainerd},
		{"ListRewritten", testCNIRewritten},
		{"Upgraded", testCNIUpgraded},
		{"ProgramGone", func(ctx context.Context, t *testing.T) {
			testCNIBroken(ctx, t, "failed to find plugin", func(program string) error { return os.Remove(program) })
		}},
		{"ProgramCrashes", func(ctx context.Context, t *testing.T) {
			testCNIBroken(ctx, t, "signal: killed", func(program string) error {
				return errors.Join(os.Remove(program), os.WriteFile(program, []byte("#!/bin/sh\nkill -9 $$\n"), 0o755))
			})
		}},
		{"Uninstall", func(ctx context.Context, t *testing.T) { testCNIUninstalled(ctx, t, &before) }},
	} {
		passed := t.Run(step.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), cniTimeout)
			defer cancel()
			since := len(running.Decoy.Requests())
			step.test(ctx, t)
			checkNoNodeTokens(t, since)
		})
		if !passed && step.name == "Install" {
			return
		}
	}
}

// testCNIDeployment: the application and its init container get tokens, and no injected container
// has a privilege.
func testCNIDeployment(ctx context.Context, t *testing.T) {
	namespace, subject := cniNamespace(ctx, t)
	template := client(restricted)
	_, err := running.Client.AppsV1().Deployments(namespace).Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "client"}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}, Template: template,
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = running.Client.AppsV1().Deployments(namespace).Delete(context.Background(), "client", metav1.DeleteOptions{})
	})
	pod := podOf(ctx, t, namespace, "app=client", cluster.Running)
	checkInitToken(ctx, t, pod, subject)
	getToken(ctx, t, pod, subject, "/azidentity")
	if _, asks := pod.Annotations[cnirequest.Annotation]; !asks {
		t.Errorf("the pod does not ask the plugin: annotations %v", pod.Annotations)
	}
	for _, c := range pod.Spec.InitContainers[:2] {
		if s := c.SecurityContext; *s.RunAsUser == 0 || len(s.Capabilities.Add) > 0 {
			t.Errorf("container %s has the security context %v", c.Name, s)
		}
	}
	// Forwarded to the node's IMDS by the proxy, whose user the redirect exempts.
	output, err := running.Exec(ctx, namespace, pod.Name, "app", "/ask", "/metadata/instance?api-version=2021-02-01")
	if err != nil || !strings.Contains(output, "answered_by") {
		t.Errorf("instance metadata: %q, %v; want the decoy's answer", output, err)
	}
}

// testCNISealed: nothing in a sealed pod reaches the node's IMDS, not even the proxy's user.
func testCNISealed(ctx context.Context, t *testing.T) {
	namespace, subject := cniNamespace(ctx, t)
	asProxy := int64(1501)
	pod := startPod(ctx, t, namespace, client(restricted, annotate(inject.RedirectAnnotation, "cni-sealed"), func(p *corev1.PodTemplateSpec) {
		p.Spec.SecurityContext.RunAsUser, p.Spec.SecurityContext.RunAsGroup = &asProxy, &asProxy
	}))
	before := len(running.Decoy.Requests())
	getToken(ctx, t, pod, subject, "/azidentity")
	if output, err := running.Exec(ctx, namespace, pod.Name, "app", "/ask", "/metadata/instance?api-version=2021-02-01"); err == nil {
		t.Errorf("instance metadata: %q, want none", output)
	}
	if after := running.Decoy.Requests(); len(after) != before {
		t.Errorf("the node's IMDS got the requests %q", after[before:])
	}
}

// noValidator makes the proxy prove the redirect.
var noValidator = annotate(inject.CNIValidatorAnnotation, "false")

// testCNINoValidator: in a pod without the validator, the proxy is the first container and starts
// with the redirect, in both modes.
func testCNINoValidator(ctx context.Context, t *testing.T) {
	namespace, subject := cniNamespace(ctx, t)
	for _, mode := range []string{"cni-forward", "cni-sealed"} {
		create(ctx, t, namespace, mode, client(restricted, once, noValidator, annotate(inject.RedirectAnnotation, mode)))
		pod := waitFor(ctx, t, namespace, mode, cluster.Succeeded)
		checkOnce(ctx, t, pod, subject)
		if first := pod.Spec.InitContainers[0].Name; first != inject.ProxyName {
			t.Errorf("%s: the first init container is %s", mode, first)
		}
	}
}

func testCNIJob(ctx context.Context, t *testing.T) {
	namespace, subject := cniNamespace(ctx, t)
	_, err := running.Client.BatchV1().Jobs(namespace).Create(ctx,
		&batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "client"}, Spec: batchv1.JobSpec{Template: client(restricted, once)}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkOnce(ctx, t, podOf(ctx, t, namespace, "job-name=client", cluster.Succeeded), subject)
	waitComplete(ctx, t, namespace, "client")
}

// checkOnce checks the tokens that both containers of a completed pod have printed.
func checkOnce(ctx context.Context, t *testing.T, pod *corev1.Pod, subject string) {
	t.Helper()
	checkInitToken(ctx, t, pod, subject)
	output, err := running.Logs(ctx, pod.Namespace, pod.Name, "app", false)
	if err != nil {
		t.Fatal(err)
	}
	checkToken(t, output, subject)
}

// testCNICronJob: the first Job of a CronJob, which starts within a minute, gets tokens.
func testCNICronJob(ctx context.Context, t *testing.T) {
	namespace, subject := cniNamespace(ctx, t)
	cronJobs := running.Client.BatchV1().CronJobs(namespace)
	_, err := cronJobs.Create(ctx, &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "client"}, Spec: batchv1.CronJobSpec{
		Schedule: "* * * * *", JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: client(restricted, once)}},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		background := metav1.DeletePropagationBackground
		_ = cronJobs.Delete(context.Background(), "client", metav1.DeleteOptions{PropagationPolicy: &background})
	})
	checkOnce(ctx, t, podOf(ctx, t, namespace, "app=client", cluster.Succeeded), subject)
}

// testCNINotAsking: a pod without the proxy gets no rule, and reaches the node's IMDS.
func testCNINotAsking(ctx context.Context, t *testing.T) {
	namespace, _ := cniNamespace(ctx, t)
	pod := startPod(ctx, t, namespace, client(restricted, func(p *corev1.PodTemplateSpec) { p.Spec.InitContainers, p.Annotations = nil, nil }))
	output, err := running.Exec(ctx, namespace, pod.Name, "app", "/ask", "/metadata/instance?api-version=2021-02-01")
	if err != nil || !strings.Contains(output, "answered_by") {
		t.Errorf("got %q, %v; want the decoy's answer", output, err)
	}
}

// testCNIRefused: a pod whose request is invalid, or not allowed on this node, does not start, and
// its events have the reason. The namespace has no webhook.
func testCNIRefused(ctx context.Context, t *testing.T) {
	namespace, err := running.NewNamespace(ctx, map[string]string{webhookLabel: "none"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ request, want string }{
		"root":   {strings.ReplaceAll(cnirequest.New(8000, 1501, 1501).String(), "1501", "0"), "must not be root's"},
		"others": {cnirequest.New(8000, 1000, 1000).String(), "this node exempts no process of UID 1000"},
		"shell":  {"$(reboot); ../../etc", `must have the exact form that injection writes`},
	} {
		create(ctx, t, namespace, name, corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{cnirequest.Annotation: c.request}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: application, Command: []string{"/pause"}}}},
		})
		waitForEvent(ctx, t, namespace, name, c.want)
		pod, err := running.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil || pod.Status.Phase != corev1.PodPending {
			t.Errorf("%s: %v, %s", name, err, cluster.Describe(pod))
		}
	}
}

// testCNITaint: the DaemonSet removes the taint that keeps pods from a node without the plugin, and
// no other taint.
func testCNITaint(ctx context.Context, t *testing.T) {
	const taint, other = "test/cni-not-ready", "test/other"
	nodes := running.Client.CoreV1().Nodes()
	setTaints := func(ctx context.Context, taints ...corev1.Taint) {
		t.Helper()
		patch, err := json.Marshal(map[string]any{"spec": map[string]any{"taints": taints}}) // null removes all
		if err == nil {
			_, err = nodes.Patch(ctx, cluster.NodeName, types.MergePatchType, patch, metav1.PatchOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { setTaints(context.Background()) })
	setTaints(ctx, corev1.Taint{Key: taint, Value: "true", Effect: corev1.TaintEffectNoSchedule}, corev1.Taint{Key: other, Effect: corev1.TaintEffectPreferNoSchedule})
	installCNI(ctx, t, "cni.removeTaint="+taint)
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		node, err := nodes.Get(ctx, cluster.NodeName, metav1.GetOptions{})
		if err == nil && (len(node.Spec.Taints) != 1 || node.Spec.Taints[0].Key != other) {
			err = fmt.Errorf("the node has the taints %v", node.Spec.Taints)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	installCNI(ctx, t)
}

// testCNISandboxLost: the new sandbox of a pod, as after a reboot, gets the redirect again.
func testCNISandboxLost(ctx context.Context, t *testing.T) {
	namespace, subject := cniNamespace(ctx, t)
	before := startPod(ctx, t, namespace, client(restricted))
	killSandbox(t, before)
	after := waitFor(ctx, t, namespace, before.Name, func(p *corev1.Pod) error {
		for _, name := range []string{inject.ProxyInitName, inject.ProxyName, "fetch", "app"} {
			if status(t, p, name).ContainerID == status(t, before, name).ContainerID {
				return fmt.Errorf("container %s has not been replaced yet: %s", name, cluster.Describe(p))
			}
		}
		return cluster.Running(p)
	})
	checkInitToken(ctx, t, after, subject)
	getToken(ctx, t, after, subject, "/azidentity")
}

// testCNIContainerd: after a restart of containerd, running pods keep the redirect, and new ones
// get it.
func testCNIContainerd(ctx context.Context, t *testing.T) {
	namespace, subject := cniNamespace(ctx, t)
	pod := startPod(ctx, t, namespace, client(restricted))
	if err := running.RestartContainerd(ctx); err != nil {
		t.Fatal(err)
	}
	create(ctx, t, namespace, "new", client(restricted, once))
	checkOnce(ctx, t, waitFor(ctx, t, namespace, "new", cluster.Succeeded), subject)
	getToken(ctx, t, pod, subject, "/azidentity", "--scope=https://storage.azure.com/.default")
}

// testCNIRewritten: another program puts its own list back, in place and by a rename, while pods
// are created. The entry comes back each time. A pod either gets a token from the proxy, or does
// not start.
func testCNIRewritten(ctx context.Context, t *testing.T) {
	namespace, subject := cniNamespace(ctx, t)
	path := filepath.Join(running.CNIConfig(), cluster.CNIList)
	ours := readList(t, cluster.CNIList)
	before, after, found := strings.Cut(ours, `,{"type":"imds-cni"`)
	if !found {
		t.Fatalf("the list has no entry:\n%s", ours)
	}
	theirs := before + after[strings.Index(after, "]}")+len("]}"):]
	for i, rewrite := range []func() error{
		func() error { return os.WriteFile(path, []byte(theirs), 0o644) },
		func() error {
			temp := filepath.Join(running.CNIConfig(), "new")
			return errors.Join(os.WriteFile(temp, []byte(theirs), 0o644), os.Rename(temp, path))
		},
	} {
		if err := rewrite(); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint("during-", i)
		create(ctx, t, namespace, name, client(restricted, once))
		err := cluster.Wait(ctx, func(context.Context) error {
			if readList(t, cluster.CNIList) != ours {
				return fmt.Errorf("the list is\n%s", readList(t, cluster.CNIList))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		pod := waitFor(ctx, t, namespace, name, func(p *corev1.Pod) error {
			if withoutRedirect(p) == nil {
				return nil
			}
			return cluster.Succeeded(p)
		})
		if cluster.Succeeded(pod) == nil {
			checkOnce(ctx, t, pod, subject)
		}
		name = fmt.Sprint("after-", i)
		create(ctx, t, namespace, name, client(restricted, once))
		checkOnce(ctx, t, waitFor(ctx, t, namespace, name, cluster.Succeeded), subject)
	}
}

// testCNIUpgraded: pods that are created while the plugin is replaced by another version, and back,
// get tokens.
func testCNIUpgraded(ctx context.Context, t *testing.T) {
	namespace, subject := cniNamespace(ctx, t)
	program := filepath.Join(running.CNIPrograms(), "imds-cni")
	first, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	created := make(chan error, 1)
	go func() {
		var err error
		for i := range upgradePods {
			err = errors.Join(err, tryCreate(ctx, t, namespace, fmt.Sprint("client-", i), client(restricted, once)))
		}
		created <- err
	}()
	installCNI(ctx, t, "images.cni.repository="+nextPlugin, "images.cni.tag=test")
	if next, err := os.ReadFile(program); err != nil || string(next) == string(first) {
		t.Errorf("the plugin was not replaced: %v", err)
	}
	installCNI(ctx, t)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	for i := range upgradePods {
		checkOnce(ctx, t, waitFor(ctx, t, namespace, fmt.Sprint("client-", i), cluster.Succeeded), subject)
	}
	if again, err := os.ReadFile(program); err != nil || string(again) != string(first) {
		t.Errorf("the first version is not back: %v", err)
	}
}

// testCNIBroken: with a program that is missing or that crashes, no pod starts, whose events have
// the reason. The DaemonSet repairs the program, and then the pod starts.
func testCNIBroken(ctx context.Context, t *testing.T, want string, spoil func(program string) error) {
	namespace, subject := cniNamespace(ctx, t)
	removeDaemonSet(ctx, t)
	if err := spoil(filepath.Join(running.CNIPrograms(), "imds-cni")); err != nil {
		t.Fatal(err)
	}
	create(ctx, t, namespace, "client", client(restricted, once))
	waitForEvent(ctx, t, namespace, "client", want)
	pod, err := running.Client.CoreV1().Pods(namespace).Get(ctx, "client", metav1.GetOptions{})
	if err != nil || pod.Status.Phase != corev1.PodPending || len(pod.Status.PodIP) > 0 {
		t.Errorf("%v, %s", err, cluster.Describe(pod))
	}
	installCNI(ctx, t)
	checkOnce(ctx, t, waitFor(ctx, t, namespace, "client", cluster.Succeeded), subject)
}

// testCNIUninstalled: a node without the plugin starts no container of a pod that asks for it, and
// is as it was before the installation. Pods from before can be deleted.
func testCNIUninstalled(ctx context.Context, t *testing.T, before *string) {
	namespace, _ := cniNamespace(ctx, t)
	old := startPod(ctx, t, namespace, client(restricted))
	installCNI(ctx, t, "cni.uninstall=true", "cni.removeBinary=true")
	if after := cniFiles(t); after != *before {
		t.Errorf("the node's CNI files are\n%s, want those of before the installation\n%s", after, *before)
	}
	if _, err := os.Stat(filepath.Join(running.CNIPrograms(), "imds-cni")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the plugin is on the node: %v", err)
	}
	create(ctx, t, namespace, "absent", client(restricted))
	waitFor(ctx, t, namespace, "absent", withoutRedirect)
	create(ctx, t, namespace, "no-validator", client(restricted, noValidator))
	pod := waitFor(ctx, t, namespace, "no-validator", withoutRedirect)
	t.Log(cluster.Describe(pod))
	if err := running.RestartKubelet(ctx); err != nil { // it does not know any more that the hook failed
		t.Fatal(err)
	}
	restarts := pod.Status.InitContainerStatuses[0].RestartCount
	waitFor(ctx, t, namespace, "no-validator", func(p *corev1.Pod) error {
		if p.Status.InitContainerStatuses[0].RestartCount < restarts+2 {
			return errors.New("the proxy has not been restarted twice")
		}
		return withoutRedirect(p)
	})

	if err := running.Client.CoreV1().Pods(namespace).Delete(ctx, old.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		pods, err := running.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + old.Name})
		if err == nil && len(pods.Items) > 0 {
			err = fmt.Errorf("the pod from before is not gone: %s", cluster.Describe(&pods.Items[0]))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	removeDaemonSet(ctx, t)
}
