package retire

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/survey"
)

const (
	podIdentityGroup = "aadpodidentity.k8s.io"
	bindingLabel     = "aadpodidbinding"
	kedaGroup        = "keda.sh"
	classKind        = "SecretProviderClass"

	bindingKind, identityKind, assignedKind, exceptionKind = "AzureIdentityBinding", "AzureIdentity", "AzureAssignedIdentity", "AzurePodIdentityException"
)

// resources are the kinds of aad-pod-identity as kubectl names them.
var resources = map[string]string{
	bindingKind: "azureidentitybindings." + podIdentityGroup, identityKind: "azureidentities." + podIdentityGroup,
	assignedKind: "azureassignedidentities." + podIdentityGroup, exceptionKind: "azurepodidentityexceptions." + podIdentityGroup,
}

// Variables of the commands for Azure, which [Variables] explains.
const inCluster = ` --resource-group "$CLUSTER_RESOURCE_GROUP" --cluster-name "$CLUSTER"`

// Variables are the shell variables that the commands for Azure use, with what each of them is.
var Variables = map[string]string{"CLUSTER": "the name of the cluster in Azure", "CLUSTER_RESOURCE_GROUP": "its resource group"}

// search finds aad-pod-identity in manifests, charts and pipelines.
const search = `git grep -nE 'aad-pod-identity|aadpodid|AzureIdentity|AzureAssignedIdentity|AzurePodIdentityException|pod-identity|podIdentityProfile|pod_identity_profile|enable-pod-identity|usePodIdentity|podIdentity\.activeDirectory'`

// podIdentity adds the steps for aad-pod-identity: bindings, the wait until the identities
// are not assigned any more, identities, exceptions, the installation, and what it leaves behind. The
// installation goes only when nothing uses it.
func (b *builder) podIdentity() {
	installed := b.plan.Cluster.PodIdentity
	exceptions := b.All(podIdentityGroup, exceptionKind)
	switch {
	case installed == nil && len(exceptions)+len(b.All(podIdentityGroup, assignedKind)) == 0:
		return
	case installed == nil:
		installed = &plan.PodIdentity{}
	}
	b.out.Search = search
	if reason := b.incomplete(); reason != "" {
		b.stays("", "aad-pod-identity", reason)
		return
	}
	r := &removal{builder: b, installed: installed, busy: map[survey.Ref]string{}}
	r.findBusy()
	r.bindings()
	r.identities()
	if reason := r.used(); reason != "" {
		b.stays("", "aad-pod-identity", reason)
		return
	}
	r.exceptions(exceptions)
	r.installation()
	r.leftovers()
}

// incomplete says why it is not known who uses aad-pod-identity, or "".
func (b *builder) incomplete() string {
	switch {
	case b.options.Namespace != "":
		return "it is for the whole cluster, and only namespace " + b.options.Namespace + " was read"
	case len(b.out.NotRead) > 0:
		return "not everything that may use it was read: " + b.out.NotRead[0]
	}
	return ""
}

// removal removes aad-pod-identity.
type removal struct {
	*builder
	installed *plan.PodIdentity
	// busy has the reason why each binding and each AzureIdentity has to stay.
	busy map[survey.Ref]string
	// objects are the AzureIdentities that are removed.
	objects []*survey.Object
}

func text(o *survey.Object, path ...string) string {
	var at any = o.Body
	for _, key := range path {
		m, _ := at.(map[string]any)
		at = m[key]
	}
	value, _ := at.(string)
	return value
}

// identityOf returns the AzureIdentity of a binding.
func identityOf(o *survey.Object) survey.Ref {
	return survey.Ref{Group: podIdentityGroup, Kind: identityKind, Namespace: o.Namespace, Name: text(o, "spec", "azureIdentity")}
}

// findBusy finds the bindings that select a workload without workload identity, and their identities.
func (r *removal) findBusy() {
	for _, o := range r.All(podIdentityGroup, bindingKind) {
		reason := ""
		for _, w := range r.selected(o) {
			if !r.uses.Finished[w] {
				reason = "it gives tokens to " + w.Namespace + " " + r.key(w)
				break
			}
			if class := r.mounting[w]; class != "" {
				reason = class + " uses it for the pods of " + w.Namespace + " " + r.key(w)
				break
			}
		}
		if !valid(o.Namespace, o.Name, text(o, "spec", "azureIdentity")) {
			reason = notValid
		}
		if reason != "" {
			r.busy[o.Ref], r.busy[identityOf(o)] = reason, reason
			r.stays(o.Namespace, bindingKind+"/"+o.Name, reason)
		}
	}
}

// selected returns the workloads that a binding selects. If NMI was not found, it may run under another name, so all
// pods with the label count.
func (r *removal) selected(o *survey.Object) []survey.Ref {
	if r.uses.NMI != nil {
		return r.uses.Bindings[o.Ref]
	}
	var refs []survey.Ref
	for _, w := range r.AllWorkloads() {
		if value := w.Template.Labels[bindingLabel]; value != "" && value == text(o, "spec", "selector") {
			refs = append(refs, w.Ref)
		}
	}
	return refs
}

// added reports whether an object was made by az aks pod-identity, which has to remove it.
func (r *removal) added(o *survey.Object) bool {
	return r.installed.AddOn && (o.Labels["addonmanager.kubernetes.io/mode"] == "Reconcile" || o.Labels["kubernetes.azure.com/managedby"] == "aks")
}

// bindings deletes the bindings that nobody needs. Those of AKS's add-on go with their identity.
func (r *removal) bindings() {
	first := true
	for _, o := range r.All(podIdentityGroup, bindingKind) {
		if r.busy[o.Ref] != "" || r.added(o) {
			continue
		}
		s := Step{Title: "delete " + bindingKind + " " + o.Namespace + "/" + o.Name, Reason: r.helm(o), Checks: r.unlabelled(o)}
		if first && len(r.busy) == 0 {
			s.Checks = append(s.Checks, r.silent()...) // also that of an NMI which does not log the names of identities
		}
		s.Checks = append(s.Checks, r.notUsed(identityOf(o))...)
		s.Commands = []string{r.ifKind(bindingKind, r.kubectl(o.Namespace, "delete", "--ignore-not-found", resources[bindingKind]+"/"+o.Name))}
		r.step(s)
		first = false
	}
}

// unlabelled checks that no pod has the label that a binding selects.
func (r *removal) unlabelled(o *survey.Object) []Check {
	selector := text(o, "spec", "selector")
	keeps := slices.ContainsFunc(r.uses.Bindings[o.Ref], func(w survey.Ref) bool { return r.kept[w] })
	if selector == "" || len(validation.IsValidLabelValue(selector)) > 0 || keeps {
		return nil // no pod has it, or it stays without effect
	}
	scope := []string{"get", "pods", "--all-namespaces"}
	namespace := ""
	if r.installed.Namespaced {
		scope, namespace = []string{"get", "pods"}, o.Namespace
	}
	return []Check{{Command: none(r.kubectl(namespace, append(scope, "--selector="+bindingLabel+"="+selector, "--output=name")...)),
		Failed: "pods have the label " + bindingLabel + "=" + selector + ": remove it from their workloads, and wait until the old pods are gone", Wait: true}}
}

// nmiLog returns a check that the logs of NMI have no line of the last hour with one of some basic regular expressions,
// and can be read. It returns nothing if NMI was not found.
func (b *builder) nmiLog(failed string, patterns ...string) []Check {
	nmi := b.uses.NMI
	if nmi == nil || len(nmi.Selector) == 0 || !valid(nmi.Namespace) {
		return nil
	}
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(nmi.Selector)) {
		pairs = append(pairs, name+"="+nmi.Selector[name])
	}
	const unread = "the log cannot be read"
	logs := b.kubectl(nmi.Namespace, "logs", "--selector="+strings.Join(pairs, ","), "--since=1h", "--tail=-1")
	find := "grep -q"
	for _, p := range append(patterns, unread) {
		find += " -e " + quote(p)
	}
	// A POSIX shell has only the exit code of grep.
	return []Check{{Command: "! { " + logs + " || echo " + quote(unread) + "; } | " + find, Failed: failed + ", or its log cannot be read"}}
}

// silent checks that NMI has given no token for some time. It logs each one (nmi/standard.go, managed.go).
func (r *removal) silent() []Check {
	return r.nmiLog("aad-pod-identity has given a token in the last hour: its log names the pod", "matched identityType")
}

// notUsed checks that no pod has asked for an AzureIdentity. NMI logs POD_NAMESPACE/POD has been matched with azure
// identity NAMESPACE/NAME (nmi/standard.go, managed.go).
func (r *removal) notUsed(identity survey.Ref) []Check {
	if r.busy[identity] != "" {
		return nil // another binding uses it
	}
	name := identity.Namespace + "/" + identity.Name
	return r.nmiLog("pods have asked aad-pod-identity for "+name+" in the last hour", matched+escape(name)+"$")
}

// matched is a part of the line that NMI logs for each request that it answers.
const matched = " has been matched with azure identity "

// maxPrefix is the length of a workload's name that the names of all of its pods begin with: Kubernetes cuts off longer
// names before it adds suffixes.
const maxPrefix = 40

// notAsking checks that the pods of a workload have not asked aad-pod-identity: an old SDK does, even if the pods have
// a token file.
func (b *builder) notAsking(w *plan.Workload) []Check {
	prefix := escape(w.Namespace) + "/"
	if !b.Workloads[w.Ref()].Foreign { // the pods of others have names of their own
		prefix += escape(w.Name[:min(len(w.Name), maxPrefix)])
	}
	return b.nmiLog("pods of "+w.Namespace+" "+w.Key()+" have asked aad-pod-identity in the last hour: upgrade their SDK, or wait an hour if these pods are gone", " "+prefix+"[^ ]*"+matched)
}

// escape escapes the dots of a name for a regular expression. Names have no other special character.
func escape(name string) string { return strings.ReplaceAll(name, ".", "\\.") }

// helm says that an object comes from the chart of aad-pod-identity.
func (r *removal) helm(o *survey.Object) string {
	if release := o.Annotations["meta.helm.sh/release-name"]; release != "" {
		return printable("it is of the Helm release " + release + ": remove it from the values azureIdentities, or the next upgrade makes it again")
	}
	return ""
}

// identities deletes the AzureIdentities that no binding needs, when they are not assigned any more.
func (r *removal) identities() {
	for _, o := range r.All(podIdentityGroup, identityKind) {
		name := identityKind + "/" + o.Name
		switch {
		case r.busy[o.Ref] != "":
			continue // its binding is listed
		case !valid(o.Namespace, o.Name):
			r.busy[o.Ref] = notValid
			r.stays(o.Namespace, name, notValid)
			continue
		}
		r.objects = append(r.objects, o)
		s := Step{Title: "delete " + identityKind + " " + o.Namespace + "/" + o.Name, Reason: r.helm(o)}
		if r.added(o) {
			r.deleteAdded(&s, o)
		} else {
			s.Checks = r.unassigned(o)
			s.Commands = []string{r.ifKind(identityKind, r.kubectl(o.Namespace, "delete", "--ignore-not-found", resources[identityKind]+"/"+o.Name))}
		}
		r.step(s)
	}
}

// deleteAdded deletes an identity of AKS's add-on, with its binding.
func (r *removal) deleteAdded(s *Step, o *survey.Object) {
	for _, binding := range r.All(podIdentityGroup, bindingKind) {
		if identityOf(binding) == o.Ref {
			s.Checks = append(s.Checks, r.unlabelled(binding)...)
		}
	}
	s.Azure = true
	s.Reason = "AKS made it, with its binding; delete its role assignments and the identity in Azure afterwards"
	s.Commands = []string{"az aks pod-identity delete" + inCluster + " --namespace " + quote(o.Namespace) + " --name " + quote(o.Name)}
}

// unassigned checks that no node has the identity because of aad-pod-identity: in standard mode MIC takes it
// from the nodes when its last AzureAssignedIdentity goes.
func (r *removal) unassigned(o *survey.Object) []Check {
	if r.installed.Mode == "managed" || !r.installed.Running {
		return nil
	}
	const names = `{{range .items}}{{.spec.azureIdentityRef.metadata.namespace}}/{{.spec.azureIdentityRef.metadata.name}} {{end}}`
	list := r.kubectl("", "get", resources[assignedKind], "--all-namespaces", "--output=go-template="+names)
	return []Check{{Command: r.ifKindCheck(assignedKind, "left=$("+list+`) && case " $left" in *`+quote(" "+o.Namespace+"/"+o.Name+" ")+`*) false;; esac`),
		Failed: "MIC has not taken the identity from the nodes yet: read its log", Wait: true}}
}

// used says why aad-pod-identity itself has to stay, or "".
func (r *removal) used() string {
	if needs := r.uses.Needs; len(needs) > 0 {
		return printable(strings.TrimSpace(needs[0].Namespace+" "+needs[0].Key()) + " uses it: " + needs[0].Field)
	}
	if len(r.busy) > 0 {
		return "bindings are in use"
	}
	return ""
}

// exceptions deletes the exceptions that no workload uses. The others give pods the node's identity, which
// they also get without aad-pod-identity, so they go with it. Those of MIC and AKS do so too.
func (r *removal) exceptions(all []*survey.Object) {
	for _, o := range all {
		made := o.Annotations["meta.helm.sh/release-name"] != "" || o.Labels["app.kubernetes.io/managed-by"] == "Helm"
		ours := r.uses.MIC != nil && slices.Contains(r.uses.Exceptions[o.Ref], r.uses.MIC.Ref)
		if o.Namespace == "kube-system" || made || ours || len(r.uses.Exceptions[o.Ref]) > 0 || !valid(o.Namespace, o.Name) {
			continue
		}
		s := Step{Title: "delete " + exceptionKind + " " + o.Namespace + "/" + o.Name, Reason: "it lets no pod past aad-pod-identity"}
		if r.added(o) {
			s.Azure = true
			s.Commands = []string{"az aks pod-identity exception delete" + inCluster + " --namespace " + quote(o.Namespace) + " --name " + quote(o.Name)}
		} else {
			s.Commands = []string{r.ifKind(exceptionKind, r.kubectl(o.Namespace, "delete", "--ignore-not-found", resources[exceptionKind]+"/"+o.Name))}
		}
		r.step(s)
	}
}

// kindExists returns a command that prints the name of a kind if it exists. Commands about a kind that was deleted fail,
// also with --ignore-not-found, and a second run must succeed.
func (r *removal) kindExists(kind string) string {
	return r.kubectl("", "get", "--ignore-not-found", "crd/"+resources[kind], "--output=name")
}

// ifKind returns a command that is run only if a kind exists.
func (r *removal) ifKind(kind, command string) string { return exists(r.kindExists(kind)) + command }

// ifKindCheck is ifKind for a check.
func (r *removal) ifKindCheck(kind, command string) string {
	return "left=$(" + r.kindExists(kind) + `) && { [ -z "$left" ] || { ` + command + "; }; }"
}

// empty checks that no object of a kind is left.
func (r *removal) empty(kind string) Check {
	return Check{Command: r.ifKindCheck(kind, none(r.kubectl("", "get", resources[kind], "--all-namespaces", "--output=name"))), Failed: "there are objects of the kind " + kind}
}

// installation removes aad-pod-identity itself.
func (r *removal) installation() {
	nmi, mic := r.uses.NMI, r.uses.MIC
	if nmi == nil && mic == nil {
		r.finalizers()
		return
	}
	main := nmi
	if main == nil {
		main = mic
	}
	s := Step{Reason: r.open(), Checks: []Check{r.empty(bindingKind), r.empty(identityKind)}}
	if r.installed.Mode != "managed" {
		s.Checks = append(s.Checks, r.empty(assignedKind))
	}
	release, namespace := main.Annotations["meta.helm.sh/release-name"], main.Annotations["meta.helm.sh/release-namespace"]
	switch {
	case r.installed.AddOn:
		s.Title, s.Azure = "turn off the add-on of AKS", true
		s.Commands = []string{`az aks update --resource-group "$CLUSTER_RESOURCE_GROUP" --name "$CLUSTER" --disable-pod-identity`}
	case release != "" && valid(release, namespace):
		s.Title = "uninstall the chart of aad-pod-identity"
		s.Commands = []string{strings.Join(append(r.helmWords("uninstall", "--ignore-not-found"), "--namespace="+quote(namespace), quote(release)), " ")}
	case !valid(main.Namespace, main.Name):
		r.stays(main.Namespace, "aad-pod-identity", notValid)
		return
	default:
		s.Title = "delete the workloads of aad-pod-identity"
		s.Commands = r.deleteWorkloads(nmi, mic)
		if main.Labels["app.kubernetes.io/managed-by"] == "Helm" {
			s.ByHand = "Helm has installed it: helm uninstall the release in namespace " + main.Namespace
			s.Commands = nil
		}
	}
	r.step(s)
}

func (r *removal) deleteWorkloads(nmi, mic *survey.Workload) []string {
	var commands []string
	for _, w := range []*survey.Workload{mic, nmi} {
		if w != nil {
			commands = append(commands, r.kubectl(w.Namespace, "delete", "--ignore-not-found", strings.ToLower(w.Kind)+"/"+w.Name))
		}
	}
	return append(commands, r.kubectl("", "delete", "--ignore-not-found", "clusterrole/aad-pod-id-mic-role", "clusterrole/aad-pod-id-nmi-role",
		"clusterrolebinding/aad-pod-id-mic-binding", "clusterrolebinding/aad-pod-id-nmi-binding"))
}

// open warns of the pods that aad-pod-identity keeps from the node's identity.
func (r *removal) open() string {
	n := r.plan.Summary.ByToday[plan.ByNothing]
	if n == 0 {
		return "without it, pods without a sidecar reach the node's IMDS: az aks update --enable-imds-restriction keeps them from it"
	}
	return fmt.Sprintf("without it, pods without a sidecar reach the node's IMDS, also those of the workloads whose requests it refuses (%d): az aks update --enable-imds-restriction keeps them from it", n)
}

// finalizers removes those of AzureAssignedIdentities that MIC has left behind.
func (r *removal) finalizers() {
	for _, o := range r.All(podIdentityGroup, assignedKind) {
		if !valid(o.Namespace, o.Name) {
			r.stays(o.Namespace, assignedKind+"/"+o.Name, notValid)
			continue
		}
		r.step(Step{Title: "delete " + assignedKind + " " + o.Namespace + "/" + o.Name, Reason: "MIC, which would remove its finalizer, is gone",
			Commands: []string{
				r.ifKind(assignedKind, exists(r.kubectl(o.Namespace, "get", "--ignore-not-found", resources[assignedKind]+"/"+o.Name, "--output=name"))+
					r.kubectl(o.Namespace, "patch", resources[assignedKind]+"/"+o.Name, "--type=merge", `--patch={"metadata":{"finalizers":null}}`)),
				r.ifKind(assignedKind, r.kubectl(o.Namespace, "delete", "--ignore-not-found", resources[assignedKind]+"/"+o.Name)),
			}})
	}
}

// leftovers removes what an uninstallation leaves behind: the definitions, in the managed mode the
// identities of the nodes, and roles.
func (r *removal) leftovers() {
	crds := Step{Title: "delete the kinds of aad-pod-identity", Reason: "Helm does not delete them", Commands: []string{r.kubectl("", "delete", "--ignore-not-found")}}
	for _, kind := range []string{bindingKind, identityKind, assignedKind, exceptionKind} {
		crds.Commands[0] += " crd/" + resources[kind]
		if kind != exceptionKind {
			crds.Checks = append(crds.Checks, r.empty(kind))
		}
	}
	if nmi := r.uses.NMI; nmi != nil && valid(nmi.Namespace, nmi.Name) {
		crds.Checks = append(crds.Checks, Check{Command: none(r.kubectl(nmi.Namespace, "get", "--ignore-not-found", "daemonset/"+nmi.Name, "--output=name")),
			Failed: "the DaemonSet of aad-pod-identity exists", Wait: true})
	}
	r.step(crds)
	r.nodes()
}

// nodes shows what aad-pod-identity has left in Azure. What other programs of the nodes use must stay, so a
// person decides.
func (r *removal) nodes() {
	if n := r.plan.Summary.ByToday[plan.ByNodeIdentity]; n > 0 {
		r.stays("", "identities and roles of the nodes", fmt.Sprintf("workloads use the node's identity: %d", n))
		return
	}
	group := `"$(az aks show --resource-group "$CLUSTER_RESOURCE_GROUP" --name "$CLUSTER" --query nodeResourceGroup --output tsv)"`
	if ids := r.resourceIDs(); len(ids) > 0 && r.installed.Mode == "managed" && !r.installed.AddOn {
		s := Step{Title: "remove the identities from the scale sets of the nodes", Azure: true,
			ByHand:   "for each scale set that has one of them, and if nothing else on the nodes uses it: az vmss identity remove --resource-group <NODE_RESOURCE_GROUP> --name <SCALE_SET> --identities " + strings.Join(ids, " "),
			Commands: []string{"az vmss list --resource-group " + group + " --query '[].{name: name, identities: identity.userAssignedIdentities}'"}}
		r.step(s)
	}
	query, of := "identityProfile.kubeletidentity.clientId", "kubelets"
	if r.installed.AddOn {
		query, of = "identity.principalId", "cluster"
	}
	r.step(Step{Title: "delete the role assignments for aad-pod-identity", Azure: true,
		ByHand:   "delete those that were made for aad-pod-identity: Managed Identity Operator, and Virtual Machine Contributor if nothing else needs it (az role assignment delete)",
		Commands: []string{`az role assignment list --all --assignee "$(az aks show --resource-group "$CLUSTER_RESOURCE_GROUP" --name "$CLUSTER" --query ` + query + ` --output tsv)" --output table # of the ` + of}})
}

// resourceIDs returns the resource IDs of the identities that are removed.
func (r *removal) resourceIDs() []string {
	ids := map[string]bool{}
	for _, o := range r.objects {
		if id, ok := plan.ParseResourceID(text(o, "spec", "resourceID")); ok {
			ids[quote(printable(id.String()))] = true
		}
	}
	return slices.Sorted(maps.Keys(ids))
}
