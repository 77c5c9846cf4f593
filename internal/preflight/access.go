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

// needed are the rights that an application team needs for a migration.
var needed = []struct{ verb, group, resource string }{
	{"patch", "apps", "deployments"}, {"patch", "", "serviceaccounts"}, {"create", "", "serviceaccounts"},
}

// mayChange asks the API server which of these rights the person has in a namespace.
func (r *run) mayChange(ctx context.Context, namespace string) {
	var missing []string
	for _, n := range needed {
		review := &authorizationv1.SelfSubjectAccessReview{
			TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectAccessReview"},
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: namespace, Verb: n.verb, Group: n.group, Resource: n.resource,
			}},
		}
		answer := new(authorizationv1.SelfSubjectAccessReview)
		if err := r.client.Create(ctx, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", nil, review, answer); err != nil {
			r.add(Skipped, "", "", "your rights: %s", oneLine(err))
			return
		}
		if !answer.Status.Allowed {
			missing = append(missing, n.verb+" "+n.resource)
		}
	}
	if len(missing) > 0 {
		r.add(Note, "ask for the ClusterRole edit in this namespace, or send the changes to somebody who has it", "docs/migration.md", "you may not %s", strings.Join(missing, ", "))
		return
	}
	r.ok("you may change workloads and service accounts")
}

// oneLine returns an error without line breaks.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func sortedKeys[T any](set map[string]T) []string { return slices.Sorted(maps.Keys(set)) }

func quantity(text string) *resource.Quantity {
	q := resource.MustParse(text)
	return &q
}
