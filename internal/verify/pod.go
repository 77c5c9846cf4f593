package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
)

// checkHints has the meaning of the exit codes of proxy check (docs/check.md).
var checkHints = map[int]string{
	10: "environment: a variable is missing or invalid", 11: "the federated token", 12: "the issuer", 13: "Entra cannot be reached, or does not know the tenant",
	14: "Entra refuses the token request: is there a federated credential? imds-migrate plan --azure", 15: "metadata requests do not reach the proxy",
}

// check verifies one pod.
func (t task) check(ctx context.Context, executor Executor, config Config) Line {
	l := Line{Workload: strings.ToLower(t.workload.Kind) + "/" + t.workload.Name}
	fail := func(hint, format string, args ...any) Line {
		l.Text, l.Hint = fmt.Sprintf(format, args...), hint
		return l
	}
	if t.pod == nil {
		switch t.workload.Kind {
		case "CronJob":
			return fail("run it: kubectl --namespace="+config.Namespace+" create job --from=cronjob/"+t.workload.Name+" "+t.workload.Name+"-try", "no pod runs now")
		case "Job":
			return fail("verify it while it runs", "no pod runs now")
		}
		return fail("look at its events: kubectl --namespace="+config.Namespace+" describe "+l.Workload, "no pod runs")
	}
	pod := t.pod
	l.Pod = pod.Name
	restart := "restart it: kubectl --namespace=" + config.Namespace + " rollout restart " + l.Workload
	proxy := container(pod, inject.ProxyName)
	switch {
	case proxy == nil && !requested(t.workload.Template.Labels, t.workload.Template.Annotations):
		return fail("set the label and the annotation of docs/migration.md, step 7", "the pod template does not request the sidecar")
	case proxy == nil:
		return fail(restart, "the pod has no sidecar, although its template requests it")
	}
	if reason := redirect(pod); reason != "" {
		return fail("read its log: kubectl --namespace="+config.Namespace+" logs "+pod.Name+" --container="+inject.ProxyInitName, "%s", reason)
	}
	if reason := ready(pod); reason != "" {
		return fail("read its log: kubectl --namespace="+config.Namespace+" logs "+pod.Name+" --container="+inject.ProxyName, "%s", reason)
	}
	if reason, hint := t.proxyCheck(ctx, executor, config); reason != "" {
		return fail(hint, "%s", reason)
	}
	l.OK, l.Text = true, "the sidecar is ready, "+redirectText(pod)+", proxy check succeeds"
	return l
}

func container(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

func status(pod *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// withoutRedirect reports whether the pod's author has chosen no redirect, or, without the annotation, the
// configuration of the webhook: injection then writes a variable into the sidecar. The same variable in a container
// of the application proves nothing, because the author may have written it.
func withoutRedirect(pod *corev1.Pod) bool {
	if redirect, chosen := pod.Annotations[inject.RedirectAnnotation]; chosen {
		return redirect == "none"
	}
	proxy := container(pod, inject.ProxyName)
	return container(pod, inject.ProxyInitName) == nil && proxy != nil &&
		slices.ContainsFunc(proxy.Env, func(e corev1.EnvVar) bool { return e.Name == azure.EnvIMDSHost })
}

func redirectText(pod *corev1.Pod) string {
	if withoutRedirect(pod) {
		return "there is no redirect, as requested"
	}
	return "the redirect was installed and proven"
}

// redirect checks that proxy-init has ended with exit code 0: it then has installed the redirect, read it
// back, and proven it by a connection. The pod must have the proxy.
func redirect(pod *corev1.Pod) string {
	if withoutRedirect(pod) {
		return ""
	}
	switch {
	case container(pod, inject.ProxyInitName) != nil:
	case inject.ProxyProves(*container(pod, inject.ProxyName)):
		return "" // it runs only with the redirect
	default:
		return "the pod has no container " + inject.ProxyInitName + ", so there is no redirect"
	}
	s := status(pod, inject.ProxyInitName)
	switch {
	case s == nil || s.State.Terminated == nil:
		return inject.ProxyInitName + " has not ended: " + waiting(s)
	case s.State.Terminated.ExitCode != 0:
		return fmt.Sprintf("%s has ended with exit code %d: %s", inject.ProxyInitName, s.State.Terminated.ExitCode, shown(s.State.Terminated.Message))
	}
	return ""
}

func waiting(s *corev1.ContainerStatus) string {
	if s == nil || s.State.Waiting == nil {
		return "it is running, or was not started"
	}
	return cmp.Or(s.State.Waiting.Reason, "it is waiting")
}

func ready(pod *corev1.Pod) string {
	s := status(pod, inject.ProxyName)
	switch {
	case s == nil || s.State.Running == nil:
		return inject.ProxyName + " does not run: " + waiting(s)
	case !s.Ready:
		return inject.ProxyName + " is not ready"
	}
	return ""
}

// proxyCheck runs proxy check in the sidecar.
func (t task) proxyCheck(ctx context.Context, executor Executor, config Config) (reason, hint string) {
	if image := container(t.pod, inject.ProxyName).Image; strings.Contains(image, "azure/workload-identity/proxy") {
		return "the sidecar is " + image + ", which has no command check", "use this project's webhook or images: docs/images.md"
	}
	command := []string{"/proxy", "check"}
	if config.Resource != "" {
		command = append(command, "--resource="+config.Resource)
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(config.Timeout, DefaultTimeout))
	defer cancel()
	output, code, err := executor.Exec(ctx, t.pod.Namespace, t.pod.Name, inject.ProxyName, command...)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "proxy check has not ended in time", "set --timeout"
	case err != nil && strings.Contains(err.Error(), "not found"):
		return "the pod has ended meanwhile", "run verify again"
	case err != nil:
		hint = "kubectl --namespace=" + config.Namespace + " describe pod " + t.pod.Name
		if apierrors.IsForbidden(err) || strings.Contains(err.Error(), "forbidden") {
			hint = "you need the right to create pods/exec"
		}
		return "proxy check could not be run: " + shown(err.Error()), hint
	case code != 0:
		return fmt.Sprintf("proxy check ends with exit code %d: %s", code, cmp.Or(checkHints[code], failure(output))), "kubectl --namespace=" + config.Namespace + " exec " + t.pod.Name + " --container=" + inject.ProxyName + " -- /proxy check"
	}
	return "", ""
}

// maxShown is the length of the longest output that is repeated.
const maxShown = 200

// failure returns the last line of an output.
func failure(output string) string {
	output = strings.TrimSpace(output)
	return shown(output[strings.LastIndexByte(output, '\n')+1:])
}

// shown returns the beginning of a text in one line.
func shown(text string) string {
	text = strings.Join(strings.Fields(text[:min(len(text), 4*maxShown)]), " ")
	return strings.ToValidUTF8(text[:min(len(text), maxShown)], "")
}
