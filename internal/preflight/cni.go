package preflight

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/version"
)

// cniPlugin checks whether the nodes have this project's CNI plugin. A cluster without it is in order.
func (r *run) cniPlugin(ctx context.Context) {
	body, err := r.client.Get(ctx, "/apis/apps/v1/daemonsets", url.Values{"labelSelector": {"app.kubernetes.io/name=imds-oidc-proxy-cni"}})
	if err != nil {
		return // the kind is among those that may not be listed
	}
	defer body.Close()
	var sets appsv1.DaemonSetList
	if err := json.NewDecoder(io.LimitReader(body, 16<<20)).Decode(&sets); err != nil {
		return
	}
	for _, set := range sets.Items {
		if slices.ContainsFunc(set.Spec.Template.Spec.Containers, installsPlugin) {
			r.plugin = true
			r.pluginNodes(set)
		}
	}
	if r.plugin {
		r.pluginRuntimes()
	}
}

func installsPlugin(c corev1.Container) bool {
	return c.Name == "imds-cni" && slices.Contains(c.Args, "install")
}

func (r *run) pluginNodes(set appsv1.DaemonSet) {
	ready, all := set.Status.NumberReady, set.Status.DesiredNumberScheduled
	if ready < all || all == 0 {
		r.add(Fault, "look at its pods: kubectl --namespace="+set.Namespace+" get pods -o wide", "docs/cni.md#if-something-is-wrong",
			"DaemonSet %s/%s is ready on %d of %d nodes: pods that ask for it do not start on the others", set.Namespace, set.Name, ready, all)
		return
	}
	r.ok("DaemonSet %s/%s is ready on all nodes (%d)", set.Namespace, set.Name, all)
}

// runtimes has the first version of each container runtime that passes the annotations of pods to plugins.
var runtimes = map[string]string{"containerd": "1.5.0", "cri-o": "1.29.0"}

// pluginRuntimes checks that the nodes' container runtimes pass the annotations with which pods ask for the
// redirect. Without them the plugin refuses these pods. Nodes with the same runtime are one result.
func (r *run) pluginRuntimes() {
	byRuntime := map[string][]string{}
	for _, n := range r.nodes {
		if info := n.Status.NodeInfo; info.OperatingSystem != "windows" {
			byRuntime[info.ContainerRuntimeVersion] = append(byRuntime[info.ContainerRuntimeVersion], n.Name)
		}
	}
	for _, runtime := range sortedKeys(byRuntime) {
		nodes := nodesText(byRuntime[runtime])
		name, served, _ := strings.Cut(runtime, "://")
		first, known := runtimes[name]
		v, err := version.ParseGeneric(served)
		switch {
		case !known || err != nil:
			r.add(Warning, "start a pod with the annotation there before you use the plugin", "docs/cni.md#what-it-needs", "the plugin was not tried with container runtime %q: %s", runtime, nodes)
		case v.LessThan(version.MustParseGeneric(first)):
			r.add(Fault, "update these nodes to "+name+" "+first+" or later", "docs/cni.md#what-it-needs", "%s %s does not pass the annotations of pods to plugins, so no pod starts there: %s", name, served, nodes)
		}
	}
	if slices.ContainsFunc(r.nodes, func(n corev1.Node) bool { return n.Labels[aksLabel] != "" }) {
		r.add(Note, "watch for pods that do not start", "docs/cni.md#on-aks", "AKS does not support further CNI plugins, and sometimes writes its list of plugins again; the installer then adds the plugin again")
	}
}

// maxNodes is how many nodes a result names.
const maxNodes = 3

// nodesText returns the names of nodes for a person: the first ones, and how many others there are.
func nodesText(names []string) string {
	slices.Sort(names)
	if len(names) == 1 {
		return "node " + names[0]
	}
	text := "nodes " + strings.Join(names[:min(len(names), maxNodes)], ", ")
	if more := len(names) - maxNodes; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// aksLabel is on all nodes of AKS.
const aksLabel = "kubernetes.azure.com/cluster"

// otherRedirect is a value of the annotation imds-oidc-proxy/redirect for pods that may not have NET_ADMIN.
type otherRedirect struct{ mode, text string }

// otherRedirects returns those that the cluster can have.
func (r *run) otherRedirects() []otherRedirect {
	others := []otherRedirect{{"none", "without a redirect"}}
	if r.plugin {
		others = slices.Insert(others, 0, otherRedirect{"cni-forward", "with the CNI plugin's redirect"})
	}
	return others
}
