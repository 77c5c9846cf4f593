package plan

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/survey"
)

// policies has what the cluster refuses or changes at the admission of pods.
type policies struct {
	*builder
	constraints []constraint
	openShift   bool
}

// constraint is a constraint of Gatekeeper, such as one of Azure Policy.
type constraint struct {
	*survey.Object
	action   string // deny, warn or dryrun
	excluded []string
	included []string
}

// constraintKinds matches the kinds whose constraints can refuse the sidecar. Azure Policy adds a version
// and a hash to the name of a kind.
var constraintKinds = regexp.MustCompile(`^K8sAzure(?:V\d+)?(AllowedCapabilities|ContainerAllowedImages|AllowedUsersGroups|NoPrivilege|NoPrivilegeEscalation|ContainerLimits|ReadOnlyRootFilesystem)`)

// remedies says for each of these kinds which parameter lets the sidecar pass. The kinds without one
// accept it as it is.
var remedies = map[string]string{
	"AllowedCapabilities":    "allow NET_ADMIN (requiredDropCapabilities, allowedCapabilities), or exempt the container azwi-proxy-init by excludedContainers",
	"ContainerAllowedImages": "add both images to allowedContainerImagesRegex",
	"AllowedUsersGroups":     "allow user 0 for azwi-proxy-init and 1501 for azwi-proxy, or exempt the containers by excludedContainers",
	"ContainerLimits":        "set requests and limits within the policy's: annotation imds-oidc-proxy/proxy-resources and the chart's values",
}

func newPolicies(b *builder) *policies {
	p := &policies{builder: b}
	for ref, o := range b.Objects {
		if ref.Group != "constraints.gatekeeper.sh" || !constraintKinds.MatchString(ref.Kind) {
			continue
		}
		c := constraint{Object: o, action: strings.ToLower(text(o.Body, "spec", "enforcementAction")),
			excluded: texts(o.Body, "spec", "match", "excludedNamespaces"), included: texts(o.Body, "spec", "match", "namespaces")}
		if c.action == "" {
			c.action = "deny"
		}
		p.constraints = append(p.constraints, c)
	}
	slices.SortFunc(p.constraints, func(x, y constraint) int { return x.Ref.Compare(y.Ref) })
	p.openShift = len(b.All("security.openshift.io", "SecurityContextConstraints")) > 0
	return p
}

// texts returns the strings of a list.
func texts(value any, path ...string) []string {
	list, _ := at(value, path...).([]any)
	var all []string
	for _, item := range list {
		if s, ok := item.(string); ok {
			all = append(all, s)
		}
	}
	return all
}

// check adds what the admission of a workload's pods would do to the sidecar.
func (p *policies) check(w *Workload) {
	p.podSecurity(w)
	p.gatekeeper(w)
	p.limits(w)
	p.quotas(w)
	if r := w.source.Template.Spec.Resources; r != nil {
		w.find("IMDS137", "spec.resources: the limits of the pod include the sidecar's", `set the annotation imds-oidc-proxy/proxy-resources: "{}", or raise them`)
	}
	if p.openShift {
		w.find("IMDS138", "OpenShift: restricted-v2 allows neither NET_ADMIN nor the users 0 and 1501", "create one SecurityContextConstraints that allows the whole pod, for ServiceAccount "+w.account()+": docs/plan.md#imds138")
	}
	p.mesh(w)
}

// podSecurity checks the Pod Security levels of the namespace.
func (p *policies) podSecurity(w *Workload) {
	labels := p.Namespaces[w.Namespace].Labels
	const prefix = "pod-security.kubernetes.io/"
	switch level := labels[prefix+"enforce"]; level {
	case "baseline":
		w.find("IMDS130", "namespace "+w.Namespace+" enforces baseline, which refuses NET_ADMIN", p.unprivileged()+", or let the namespace enforce privileged")
	case "restricted":
		w.find("IMDS131", "namespace "+w.Namespace+" enforces restricted, which refuses NET_ADMIN and user 0", p.unprivileged()+", or let the namespace enforce privileged")
	default:
		for _, mode := range []string{"warn", "audit"} {
			if mode := labels[prefix+mode]; mode == "baseline" || mode == "restricted" {
				w.find("IMDS132", "namespace "+w.Namespace+" warns below "+mode+": the sidecar with a redirect causes a message only", "")
				return
			}
		}
	}
}

func (p *policies) gatekeeper(w *Workload) {
	for _, c := range p.constraints {
		remedy := c.remedy()
		switch {
		case remedy == "" || c.action != "deny" || !c.applies(w.Namespace):
		case c.kind() == "AllowedCapabilities":
			w.find("IMDS155", "policy "+c.Name+" ("+c.Kind+") may refuse NET_ADMIN", p.unprivileged()+", or "+remedy)
		default:
			w.find("IMDS133", "policy "+c.Name+" ("+c.Kind+") may refuse the sidecar", remedy)
		}
	}
}

// unprivileged says how the pods do without the capability NET_ADMIN.
func (p *policies) unprivileged() string {
	if p.plan.Cluster.CNIPlugin {
		return "set the annotation imds-oidc-proxy/redirect: " + redirectByCNI + redirectForward + " or " + redirectByCNI + redirectSealed
	}
	return "set the annotation imds-oidc-proxy/redirect: none, or install the CNI plugin (docs/cni.md)"
}

// kind returns the constraint's kind without the version.
func (c constraint) kind() string { return constraintKinds.FindStringSubmatch(c.Kind)[1] }

// reporting notes the constraints that report the sidecar and do not refuse it.
func (p *policies) reporting() {
	for _, c := range p.constraints {
		if remedy := c.remedy(); remedy != "" && c.action != "deny" {
			p.find("IMDS134", "policy "+c.Name+" ("+c.Kind+") has the action "+c.action+": it reports the sidecar and does not refuse it", remedy)
		}
	}
}

// remedy returns the parameter that lets the sidecar pass, or "" if it passes as it is.
func (c constraint) remedy() string {
	kind := c.kind()
	parameters := at(c.Body, "spec", "parameters")
	switch {
	case slices.Contains(texts(parameters, "excludedContainers"), inject.ProxyInitName),
		kind == "ContainerAllowedImages" && c.allowsAll(),
		kind == "AllowedCapabilities" && slices.Contains(texts(parameters, "allowedCapabilities"), "NET_ADMIN"):
		return ""
	}
	return remedies[kind]
}

// allowsAll reports whether the expression for images matches any image.
func (c constraint) allowsAll() bool {
	return slices.Contains([]string{".*", "^.*$", "^.+$", ".+"}, text(c.Body, "spec", "parameters", "imageRegex"))
}

// applies reports whether a constraint is for a namespace. Names in it may end with a star.
func (c constraint) applies(namespace string) bool {
	matches := func(pattern string) bool {
		prefix, star := strings.CutSuffix(pattern, "*")
		return pattern == namespace || star && strings.HasPrefix(namespace, prefix)
	}
	if len(c.included) > 0 && !slices.ContainsFunc(c.included, matches) {
		return false
	}
	return !slices.ContainsFunc(c.excluded, matches)
}

// limits checks the LimitRanges of the namespace.
func (p *policies) limits(w *Workload) {
	for _, o := range p.All("", "LimitRange") {
		if o.Namespace != w.Namespace || w.sidecar == nil {
			continue
		}
		var spec corev1.LimitRangeSpec
		body, _ := at(o.Body, "spec").(map[string]any)
		if runtime.DefaultUnstructuredConverter.FromUnstructured(body, &spec) != nil {
			continue
		}
		for _, limit := range spec.Limits {
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				least, request := limit.Min[name], w.sidecar.Requests[name]
				if limit.Type == corev1.LimitTypeContainer && !request.IsZero() && least.Cmp(request) > 0 {
					w.find("IMDS135", fmt.Sprintf("LimitRange %s wants at least %s of %s for each container; the sidecar requests %s", o.Name, least.String(), name, request.String()),
						"set the annotation imds-oidc-proxy/proxy-resources, and imds-oidc-proxy/proxy-init-resources")
				}
			}
		}
	}
}

// quotas checks for a quota on CPU limits, which the sidecar does not have unless the pod is Guaranteed.
func (p *policies) quotas(w *Workload) {
	for _, o := range p.All("", "ResourceQuota") {
		if o.Namespace != w.Namespace {
			continue
		}
		_, limited := stringMap(o.Body, "spec", "hard")["limits.cpu"]
		if limited && w.sidecar != nil && w.sidecar.Limits.Cpu().IsZero() && w.source.Template.Spec.Resources == nil {
			w.find("IMDS136", "ResourceQuota "+o.Name+" limits limits.cpu: a container without a CPU limit is refused, unless a LimitRange has a default", "set a CPU limit by the annotation imds-oidc-proxy/proxy-resources")
		}
	}
}

// mesh notes pods in a service mesh.
func (p *policies) mesh(w *Workload) {
	namespace, template := p.Namespaces[w.Namespace], w.source.Template
	for _, m := range []struct{ name, key, value string }{
		{"Istio", "istio-injection", "enabled"}, {"Istio", "sidecar.istio.io/inject", "true"}, {"Istio ambient", "istio.io/dataplane-mode", "ambient"}, {"Linkerd", "linkerd.io/inject", "enabled"},
	} {
		for _, labels := range []map[string]string{namespace.Labels, namespace.Annotations, template.Labels, template.Annotations} {
			if labels[m.key] == m.value {
				w.find("IMDS140", m.name+" also redirects connections of the pods: both work together, the order is in docs/security.md", "")
				return
			}
		}
	}
}
