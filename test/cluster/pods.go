package cluster

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// Exec runs a program in a container of a running pod, and returns its standard output.
func (c *Cluster) Exec(ctx context.Context, namespace, pod, container string, args ...string) (string, error) {
	request := c.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: args, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(c.REST, "GET", request.URL().String())
	if err != nil {
		return "", err
	}
	var stdout, stderr strings.Builder
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}); err != nil {
		return stdout.String(), fmt.Errorf("%s in %s/%s: %w: %s", strings.Join(args, " "), pod, container, err, stderr.String())
	}
	return stdout.String(), nil
}

// Logs returns a container's log, or with previous that of its run before the last restart.
func (c *Cluster) Logs(ctx context.Context, namespace, pod, container string, previous bool) (string, error) {
	log, err := c.Client.CoreV1().Pods(namespace).GetLogs(pod, &corev1.PodLogOptions{Container: container, Previous: previous}).DoRaw(ctx)
	return string(log), err
}

// WaitPod reads a pod until ready returns nil, and returns the pod. An error in reading the
// pod also means that it is not ready yet.
func (c *Cluster) WaitPod(ctx context.Context, namespace, name string, ready func(*corev1.Pod) error) (pod *corev1.Pod, err error) {
	err = Wait(ctx, func(ctx context.Context) (err error) {
		if pod, err = c.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		return ready(pod)
	})
	return pod, err
}

// Running is a condition for WaitPod: the pod has condition Ready.
func Running(pod *corev1.Pod) error {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("%s is %s", pod.Name, Describe(pod))
}

// Succeeded is a condition for WaitPod: the pod has phase Succeeded.
func Succeeded(pod *corev1.Pod) error {
	if pod.Status.Phase == corev1.PodSucceeded {
		return nil
	}
	return fmt.Errorf("%s is %s", pod.Name, Describe(pod))
}

// Describe returns one line with the status of a pod and its containers.
func Describe(pod *corev1.Pod) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s%s", pod.Status.Phase, pod.Status.Reason, pod.Status.Message)
	for _, s := range append(append([]corev1.ContainerStatus{}, pod.Status.InitContainerStatuses...), pod.Status.ContainerStatuses...) {
		fmt.Fprintf(&text, "; %s: ", s.Name)
		switch {
		case s.State.Waiting != nil:
			fmt.Fprintf(&text, "waiting, %s %s", s.State.Waiting.Reason, s.State.Waiting.Message)
		case s.State.Terminated != nil:
			fmt.Fprintf(&text, "terminated, %s, exit code %d %s", s.State.Terminated.Reason, s.State.Terminated.ExitCode, s.State.Terminated.Message)
		case s.State.Running != nil:
			fmt.Fprintf(&text, "running, ready %t, restarts %d", s.Ready, s.RestartCount)
		}
	}
	return text.String()
}
