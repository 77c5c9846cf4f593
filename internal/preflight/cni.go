package preflight

import (
	"context"
	"encoding/json"
	"io"
	"net/url"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
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
