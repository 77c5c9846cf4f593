package preflight

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"imds-oidc-proxy/internal/survey"
)

// The versions of Kubernetes that matter: with the first, native sidecars are on by default; below the
// second, the proxy was never expected to work.
const (
	nativeVersion = "1.29"
	oldestVersion = "1.27"
)

const nativeHint = "set --native-sidecar=off; Jobs with the sidecar do not complete then"

// versions checks the API server and the kubelets.
func (r *run) versions(ctx context.Context) {
	if r.survey.ServerVersion == "" {
		r.add(Skipped, "", "", "the version of the API server: %s", r.survey.NoVersion)
	} else {
		r.version("API server", r.survey.ServerVersion)
	}
	body, err := r.client.Get(ctx, "/api/v1/nodes", nil)
	if err != nil {
		r.add(Skipped, "", "", "the versions of the kubelets: you may not list nodes")
		return
	}
	defer body.Close()
	var nodes corev1.NodeList
	if err := json.NewDecoder(io.LimitReader(body, 256<<20)).Decode(&nodes); err != nil || len(nodes.Items) == 0 {
		r.add(Skipped, "", "", "the versions of the kubelets: there is no node")
		return
	}
	r.nodes = nodes.Items
	oldest := slices.MinFunc(nodes.Items, func(a, b corev1.Node) int {
		return compareVersions(a.Status.NodeInfo.KubeletVersion, b.Status.NodeInfo.KubeletVersion)
	})
	r.version("oldest kubelet, of node "+oldest.Name+",", oldest.Status.NodeInfo.KubeletVersion)
}

// compareVersions orders versions. One that cannot be parsed comes last.
func compareVersions(a, b string) int {
	x, errX := version.ParseGeneric(a)
	y, errY := version.ParseGeneric(b)
	switch {
	case errX != nil && errY != nil:
		return 0
	case errX != nil:
		return 1
	case errY != nil || x.LessThan(y):
		return -1
	case y.LessThan(x):
		return 1
	}
	return 0
}

func (r *run) version(what, text string) {
	v, err := version.ParseGeneric(text)
	switch {
	case err != nil:
		r.add(Skipped, "", "", "the version of the %s: %q", what, text)
	case v.LessThan(version.MustParseGeneric(oldestVersion)):
		r.add(Fault, "use Kubernetes "+nativeVersion+" or later", "docs/plan.md#imds128", "%s %s is older than %s", what, text, oldestVersion)
	case v.LessThan(version.MustParseGeneric(nativeVersion)):
		r.add(Warning, nativeHint, "docs/plan.md#imds128", "%s %s has no native sidecars", what, text)
	default:
		r.ok("%s %s has native sidecars", what, text)
	}
}

// rights reports what the person may not read.
func (r *run) rights() {
	var forbidden []string
	for _, u := range r.survey.Unread {
		if u.Code == survey.Forbidden {
			forbidden = append(forbidden, u.What)
		}
	}
	if len(forbidden) == 0 {
		r.ok("you may read what is checked")
		return
	}
	r.add(Warning, "use the ClusterRole of docs/plan.md", "docs/plan.md#what-it-reads", "you may not list %s: what depends on them is not checked", strings.Join(forbidden, ", "))
}

func (r *run) podIdentity() {
	n := len(r.survey.All("aadpodidentity.k8s.io", "AzureIdentityBinding"))
	if n > 0 {
		r.add(Note, "", "", "aad-pod-identity is installed, with %d bindings: it does no harm beside the sidecar", n)
	}
}
