package preflight

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/survey"
)

// namespace checks one namespace.
func (r *run) namespace(ctx context.Context, name string) {
	if _, exists := r.survey.Namespaces[name]; !exists && len(r.survey.Namespaces) > 0 {
		r.add(Fault, "create it, or correct --namespace", "", "it does not exist")
		return
	}
	r.dryRuns(ctx, name)
	r.accounts(name)
	r.injected(name)
	r.mayChange(ctx, name)
}

// dryRuns asks the API server whether it would accept a pod with the sidecar.
func (r *run) dryRuns(ctx context.Context, namespace string) {
	redirected, err := r.dryRun(ctx, namespace, "")
	switch {
	case err == nil && proxied(redirected):
		r.ok("a pod with the redirect is accepted")
		return
	case err == nil:
		r.add(Fault, "look at the namespace selector and the log of the webhook", "docs/webhook.md", "a pod that requests the sidecar is accepted without it: no webhook has changed it")
		return
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), "cannot create resource"):
		r.add(Skipped, "ask for the right to create pods: nothing is created", "", "whether the API server accepts the sidecar: you may not create pods, not even as a dry run")
		r.declared(namespace)
		return
	case !isRefusal(err):
		r.add(Fault, "", "", "the dry run failed: %s", oneLine(err))
		return
	}
	reason := oneLine(err)
	if _, err := r.create(ctx, namespace, without(example(namespace, ""))); err != nil {
		r.add(Skipped, "", "", "whether the API server accepts the sidecar: it refuses the check's pod without it too: %s", oneLine(err))
		return
	}
	for _, other := range r.otherRedirects() {
		if pod, err := r.dryRun(ctx, namespace, other.mode); err == nil && proxied(pod) {
			r.add(Warning, hintFor(reason)+"; "+other.text+" (imds-oidc-proxy/redirect: "+other.mode+") a pod is accepted", docsFor(reason), "a pod with the redirect is refused: %s", reason)
			return
		}
	}
	r.add(Fault, hintFor(reason), docsFor(reason), "a pod with the sidecar is refused: %s", reason)
}

// declared reports what the objects say about the admission of pods in a namespace, where no dry run is
// possible.
func (r *run) declared(namespace string) {
	level := r.survey.Namespaces[namespace].Labels["pod-security.kubernetes.io/enforce"]
	if level == "baseline" || level == "restricted" {
		r.add(Warning, "use one of the redirects of docs/plan.md#imds130, or let the namespace enforce privileged", "docs/plan.md#imds130", "the namespace enforces %s, which refuses NET_ADMIN", level)
	}
	if len(r.survey.All("security.openshift.io", "SecurityContextConstraints")) > 0 {
		r.add(Warning, "create one SecurityContextConstraints that allows the whole pod", "docs/plan.md#imds138", "OpenShift: restricted-v2 allows neither NET_ADMIN nor the users 0 and 1501")
	}
}

// isRefusal reports whether admission has refused an object.
func isRefusal(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
}

func proxied(pod *corev1.Pod) bool {
	return slices.ContainsFunc(slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers), func(c corev1.Container) bool { return c.Name == inject.ProxyName })
}

// refusals says what to do about a refusal, by a part of its text.
var refusals = []struct{ part, hint, code string }{
	{"violates PodSecurity \"restricted", "the namespace enforces restricted: let it enforce privileged", "imds131"},
	{"violates PodSecurity", "the namespace enforces baseline, which refuses NET_ADMIN: let it enforce privileged", "imds130"},
	{"azurepolicy-", "allow it in the parameters of this policy, or exclude the namespace", "imds133"},
	{"admission webhook \"validation.gatekeeper.sh\"", "allow it in the parameters of this constraint, or exclude the namespace", "imds133"},
	{"security context constraint", "create one SecurityContextConstraints that allows the whole pod", "imds138"},
	{"usage per Container", "set the annotations imds-oidc-proxy/proxy-resources and imds-oidc-proxy/proxy-init-resources", "imds135"},
	{"failed quota", "set the annotations imds-oidc-proxy/proxy-resources and imds-oidc-proxy/proxy-init-resources", "imds136"},
	{"exceeded quota", "raise the quota: the sidecar requests 5m CPU and 16Mi memory for each container", "imds136"},
}

func hintFor(reason string) string {
	for _, f := range refusals {
		if strings.Contains(reason, f.part) {
			return f.hint
		}
	}
	return "change what the message names"
}

func docsFor(reason string) string {
	for _, f := range refusals {
		if strings.Contains(reason, f.part) {
			return "docs/plan.md#" + f.code
		}
	}
	return ""
}

// dryRun creates a pod that requests the sidecar, without storing it. Without a webhook the sidecar is in it
// already.
func (r *run) dryRun(ctx context.Context, namespace, redirect string) (*corev1.Pod, error) {
	pod := example(namespace, redirect)
	if r.Pre || !r.installed {
		var err error
		if pod, err = r.withSidecar(pod); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	return r.create(ctx, namespace, pod)
}

func (r *run) create(ctx context.Context, namespace string, pod *corev1.Pod) (*corev1.Pod, error) {
	answer := new(corev1.Pod)
	err := r.client.Create(ctx, "/api/v1/namespaces/"+namespace+"/pods", url.Values{"dryRun": {metav1.DryRunAll}}, pod, answer)
	return answer, err
}

// without returns a pod that does not request the sidecar.
func without(pod *corev1.Pod) *corev1.Pod {
	pod.Labels, pod.Annotations = nil, nil
	return pod
}

// example is a pod that satisfies the level restricted. It is Burstable, as most pods are, and has limits for
// quotas: in a Guaranteed pod the sidecar has other resources.
func example(namespace, redirect string) *corev1.Pod {
	requests := corev1.ResourceList{corev1.ResourceCPU: *quantity("100m"), corev1.ResourceMemory: *quantity("128Mi")}
	limits := corev1.ResourceList{corev1.ResourceCPU: *quantity("200m"), corev1.ResourceMemory: *quantity("256Mi")}
	user := int64(1000)
	no, yes := false, true
	pod := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, GenerateName: "imds-migrate-check-", Labels: map[string]string{inject.UseLabel: "true"},
			Annotations: map[string]string{inject.InjectProxyAnnotation: "true"}},
		Spec: corev1.PodSpec{
			SecurityContext: &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{
				Name: "app", Image: "registry.example.test/check:v1", Resources: corev1.ResourceRequirements{Requests: requests, Limits: limits},
				SecurityContext: &corev1.SecurityContext{RunAsUser: &user, RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
			}},
		},
	}
	if redirect != "" {
		pod.Annotations[inject.RedirectAnnotation] = redirect
	}
	return pod
}

// withSidecar returns the pod as this project's webhook would change it.
func (r *run) withSidecar(pod *corev1.Pod) (*corev1.Pod, error) {
	config := r.Inject
	for _, image := range []*string{&config.ProxyImage, &config.ProxyInitImage} {
		if *image == "" {
			*image = "registry.example.test/imds-oidc-proxy:v0"
		}
	}
	if config.TenantID == "" {
		config.TenantID = "00000000-0000-0000-0000-000000000000"
	}
	result, err := inject.Pod(pod, nil, config)
	if err != nil {
		return nil, err
	}
	before, err := json.Marshal(pod)
	if err != nil {
		return nil, err
	}
	operations, err := json.Marshal(result.Patch)
	if err != nil {
		return nil, err
	}
	patch, err := jsonpatch.DecodePatch(operations)
	if err != nil {
		return nil, err
	}
	after, err := patch.Apply(before)
	if err != nil {
		return nil, err
	}
	changed := new(corev1.Pod)
	return changed, json.Unmarshal(after, changed)
}

// accounts checks the service accounts of the workloads that request the sidecar or the token.
func (r *run) accounts(namespace string) {
	users := map[string][]string{}
	for _, w := range r.survey.AllWorkloads() {
		if w.Namespace != namespace || w.Template.Labels[inject.UseLabel] != "true" {
			continue
		}
		name := w.Template.Spec.ServiceAccountName
		if name == "" {
			name = "default"
		}
		users[name] = append(users[name], w.Kind+" "+w.Name)
	}
	if len(users) == 0 {
		r.add(Note, "", "", "no workload has the label %s yet", inject.UseLabel)
	}
	for _, name := range sortedKeys(users) {
		r.account(namespace, name, users[name])
	}
}

func (r *run) account(namespace, name string, users []string) {
	account := r.survey.Accounts[namespace+"/"+name]
	who := strings.Join(users, ", ")
	switch {
	case name == "default":
		r.add(Fault, "give it a service account of its own", "docs/plan.md#imds101", "%s uses the service account default", who)
	case account == nil && r.survey.Found["serviceaccounts"] > 0:
		r.add(Fault, "create it", "docs/plan.md#imds102", "service account %s of %s does not exist", name, who)
	case account == nil:
		r.add(Skipped, "", "", "service account %s: you may not list serviceaccounts", name)
	default:
		r.annotations(account)
	}
}

func (r *run) annotations(account *survey.Account) {
	client, given := account.Annotations[inject.ClientIDAnnotation]
	if !given {
		r.add(Warning, "set the annotation "+inject.ClientIDAnnotation+", unless all requests name a client ID", "docs/plan.md#imds103", "service account %s names no identity", account.Name)
		return
	}
	if _, err := azure.ParseClientID(client); err != nil {
		r.add(Fault, "correct the annotation "+inject.ClientIDAnnotation, "docs/plan.md#imds103", "service account %s: %v", account.Name, err)
		return
	}
	if tenant, given := account.Annotations[inject.TenantIDAnnotation]; given {
		if _, err := azure.ParseTenant(tenant); err != nil {
			r.add(Fault, "correct the annotation "+inject.TenantIDAnnotation, "docs/injection.md", "service account %s: %v", account.Name, err)
			return
		}
	}
	r.ok("service account %s: client ID %s", account.Name, client)
}

// injected checks that pods which request the sidecar have it. Pods that were created before the webhook
// do not.
func (r *run) injected(namespace string) {
	for _, w := range r.survey.AllWorkloads() {
		if w.Namespace != namespace || !requested(w) || w.Pods == 0 {
			continue
		}
		if !r.plugin && strings.HasPrefix(w.Template.Annotations[inject.RedirectAnnotation], "cni-") {
			r.add(Fault, "install the plugin, or choose another redirect", "docs/cni.md", "%s %s asks for a redirect by the CNI plugin, which is not installed", w.Kind, w.Name)
			continue
		}
		if w.Proxied < w.Pods {
			r.add(Fault, fmt.Sprintf("restart it: kubectl --namespace=%s rollout restart %s %s", namespace, strings.ToLower(w.Kind), w.Name), "docs/webhook.md", "%s %s: %d of %d pods have no sidecar", w.Kind, w.Name, w.Pods-w.Proxied, w.Pods)
			continue
		}
		r.ok("%s %s: all pods (%d) have the sidecar", w.Kind, w.Name, w.Pods)
	}
}

func requested(w *survey.Workload) bool {
	return w.Template.Labels[inject.UseLabel] == "true" && strings.EqualFold(w.Template.Annotations[inject.InjectProxyAnnotation], "true")
}
