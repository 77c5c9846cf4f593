package preflight

import (
	"context"
	"maps"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type right struct{ verb, group, resource string }

// toChange are the rights that an application team needs for a migration, and toInstall those that the
// webhook's chart needs beyond the rights in its own namespace.
var (
	toChange  = []right{{"patch", "apps", "deployments"}, {"patch", "", "serviceaccounts"}, {"create", "", "serviceaccounts"}}
	toInstall = []right{{"create", "", "namespaces"}, {"create", "admissionregistration.k8s.io", "mutatingwebhookconfigurations"}, {"create", "rbac.authorization.k8s.io", "clusterroles"}, {"create", "rbac.authorization.k8s.io", "clusterrolebindings"}}
)

func (r *run) mayChange(ctx context.Context, namespace string) {
	switch missing, known := r.missing(ctx, namespace, toChange); {
	case !known:
	case len(missing) > 0:
		r.add(Note, "ask for the ClusterRole edit in this namespace, or send the changes to somebody who has it", "docs/migration.md", "you may not %s", strings.Join(missing, ", "))
	default:
		r.ok("you may change workloads and service accounts")
	}
}

func (r *run) mayInstall(ctx context.Context) {
	switch missing, known := r.missing(ctx, "", toInstall); {
	case !known:
	case len(missing) > 0:
		r.add(Note, "a cluster administrator has to install the webhook; without it, use imds-migrate inject", "docs/webhook.md", "you may not %s", strings.Join(missing, ", "))
	default:
		r.ok("you may install the webhook")
	}
}

// missing asks the API server which of the rights the person does not have in a namespace, or in all of them.
func (r *run) missing(ctx context.Context, namespace string, rights []right) (missing []string, known bool) {
	for _, n := range rights {
		review := &authorizationv1.SelfSubjectAccessReview{
			TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectAccessReview"},
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: namespace, Verb: n.verb, Group: n.group, Resource: n.resource,
			}},
		}
		answer := new(authorizationv1.SelfSubjectAccessReview)
		if err := r.client.Create(ctx, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", nil, review, answer); err != nil {
			r.add(Skipped, "", "", "your rights: %s", oneLine(err))
			return nil, false
		}
		if !answer.Status.Allowed {
			missing = append(missing, n.verb+" "+n.resource)
		}
	}
	return missing, true
}

// oneLine returns an error without line breaks.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func sortedKeys[T any](set map[string]T) []string { return slices.Sorted(maps.Keys(set)) }

func quantity(text string) *resource.Quantity {
	q := resource.MustParse(text)
	return &q
}
