package inject

import corev1 "k8s.io/api/core/v1"

// Pod says what makes a pod one that gets tokens through the proxy. The error is a
// [*Refusal]. A nil service account is one without annotations. The configuration
// has to be valid.
func Pod(pod *corev1.Pod, account *corev1.ServiceAccount, config Config) (Result, error) {
	if warnings, skipped := Skipped(pod); skipped {
		return Result{Warnings: warnings}, nil
	}
	s, err := readSettings(pod, account, config)
	if err != nil {
		return Result{}, err
	}
	if err := s.check(pod, account); err != nil {
		return Result{}, err
	}
	p := &plan{pod: pod, settings: s, account: account}
	p.locateToken()
	if err := p.checkTokenMode(); err != nil {
		return Result{}, err
	}
	if err := p.environments(); err != nil {
		return Result{}, err
	}
	if s.inject {
		p.ownContainers()
		p.metricsLabel()
	}
	p.tokenVolume()
	return Result{Patch: p.operations, Warnings: p.warn()}, nil
}

// Skipped reports whether a pod takes no part, whatever its service account says, and
// what its author should know of that.
func Skipped(pod *corev1.Pod) (warnings []string, skipped bool) {
	if pod.Labels[UseLabel] != "true" {
		return warnUnlabelled(pod), true
	}
	// The kubelet runs what its file says, and the API server takes no service account
	// in the copy: a patch would be refused, or show what is not so.
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return []string{StaticPod}, true
	}
	return nil, false
}

// StaticPod is why a mirror pod is left alone.
const StaticPod = "a static pod, which its node's kubelet reads from a file: left as it is; change that file"

// plan grows a patch. Its operations are in an order that keeps the indexes of the
// pod as it was: first what goes into containers, then removals from the highest
// index down, then what is put in front.
type plan struct {
	pod      *corev1.Pod
	settings *settings
	account  *corev1.ServiceAccount
	token    token

	operations []Operation
	warnings   []string
}

func (p *plan) add(path string, value any) {
	p.operations = append(p.operations, Operation{Op: "add", Path: path, Value: value})
}

func (p *plan) replace(path string, value any) {
	p.operations = append(p.operations, Operation{Op: "replace", Path: path, Value: value})
}

func (p *plan) remove(path string) {
	p.operations = append(p.operations, Operation{Op: "remove", Path: path})
}

// appendAll adds to a list that holds n elements. One that holds none may not be
// there at all.
func appendAll[T any](p *plan, path string, n int, elements []T) {
	switch {
	case len(elements) == 0:
	case n == 0:
		p.add(path, elements)
	default:
		for _, element := range elements {
			p.add(path+"/-", element)
		}
	}
}

// metricsLabel has the pod found by the PodMonitor of deploy/monitoring.
func (p *plan) metricsLabel() {
	if _, labelled := p.pod.Labels[metricsLabel]; p.settings.adminPort != 0 && !labelled {
		p.add("/metadata/labels/"+escape(metricsLabel), "true")
	}
}
