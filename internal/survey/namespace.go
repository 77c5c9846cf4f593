package survey

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// NamespaceExists returns an error if a cluster has no such namespace: its lists are empty then. An empty name
// means all namespaces.
func NamespaceExists(ctx context.Context, client Client, name string) error {
	if name == "" {
		return nil
	}
	body, err := client.Get(ctx, "/api/v1/namespaces/"+name, nil)
	switch {
	case err == nil:
		return body.Close()
	case apierrors.IsNotFound(err):
		return errors.New("namespace " + name + " does not exist")
	}
	return nil // those who may only read what is in it may not get it
}

// HasNamespace reports whether an object of the survey is in a namespace, or is that namespace. An empty name
// means all namespaces.
func (s *Survey) HasNamespace(name string) bool {
	if _, found := s.Namespaces[name]; found || name == "" {
		return true
	}
	for _, a := range s.Accounts {
		if a.Namespace == name {
			return true
		}
	}
	return hasNamespace(s.Workloads, name) || hasNamespace(s.Objects, name) || hasNamespace(s.Configs, name)
}

func hasNamespace[T any](objects map[Ref]T, name string) bool {
	for ref := range objects {
		if ref.Namespace == name {
			return true
		}
	}
	return false
}
