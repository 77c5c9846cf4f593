package preflight

import (
	"context"
	"encoding/json"
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
// redirect. Without them the plugin refuses these pods.
func (r *run) pluginRuntimes() {
	for _, n := range r.nodes {
		name, served, _ := strings.Cut(n.Status.NodeInfo.ContainerRuntimeVersion, "://")
		first, known := runtimes[name]
		v, err := version.ParseGeneric(served)
		switch {
		case n.Status.NodeInfo.OperatingSystem == "windows":
		case !known || err != nil:
			r.add(Warning, "start a pod with the annotation there before you use the plugin", "docs/cni.md#what-it-needs", "node %s has the container runtime %q, with which the plugin was not tried", n.Name, n.Status.NodeInfo.ContainerRuntimeVersion)
		case v.LessThan(version.MustParseGeneric(first)):
			r.add(Fault, "update the node to "+name+" "+first+" or later", "docs/cni.md#what-it-needs", "node %s has %s %s, which does not pass the annotations of pods to plugins: no pod of the node starts", n.Name, name, served)
		}
	}
	if slices.ContainsFunc(r.nodes, func(n corev1.Node) bool { return n.Labels[aksLabel] != "" }) {
		r.add(Note, "watch for pods that do not start", "docs/cni.md#on-aks", "AKS does not support further CNI plugins, and sometimes writes its list of plugins again; the installer then adds the plugin again")
	}
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
