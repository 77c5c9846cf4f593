package main

import (
	"context"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"imds-oidc-proxy/internal/inject"
)

const (
	// cacheTimeout is for the cache, which answers from memory at once, or is not
	// there yet.
	cacheTimeout = time.Second

	// directTimeout is for the API server, which is waiting for an answer meanwhile.
	directTimeout = 4 * time.Second
)

// accountMetadata is a service account without what this program has no use for:
// annotations are all that it reads.
func accountMetadata() *metav1.PartialObjectMetadata {
	metadata := new(metav1.PartialObjectMetadata)
	metadata.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
	return metadata
}

// keepAnnotations has the cache hold a service account's name and the annotations
// that matter here. The others, kubectl's copy of the whole object above all, are
// most of its size.
func keepAnnotations(object any) (any, error) {
	metadata, ok := object.(*metav1.PartialObjectMetadata)
	if !ok {
		return object, nil
	}
	kept := metav1.ObjectMeta{
		Name: metadata.Name, Namespace: metadata.Namespace, UID: metadata.UID, ResourceVersion: metadata.ResourceVersion,
	}
	for name, value := range metadata.Annotations {
		if strings.HasPrefix(name, annotationPrefix) {
			if kept.Annotations == nil {
				kept.Annotations = make(map[string]string)
			}
			kept.Annotations[name] = value
		}
	}
	metadata.ObjectMeta = kept
	return metadata, nil
}

// annotationPrefix is that of every annotation of service accounts that
// internal/inject reads; a test compares.
const annotationPrefix = "azure.workload.identity/"

// cachedAccounts reads service accounts from memory, and from the API server what
// is not there: the cache hears of a new account a moment later than whoever creates
// a pod for it right away.
type cachedAccounts struct {
	cache, direct client.Reader
}

// account implements [accountReader]. An account without a client ID counts as not
// there too, since accounts are created first and annotated then: such pods are few,
// and cost one more question each.
func (c cachedAccounts) account(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	key := types.NamespacedName{Namespace: namespace, Name: name}
	cached, cacheErr := readAccount(ctx, cacheTimeout, c.cache, key)
	if cacheErr == nil && cached.Annotations[inject.ClientIDAnnotation] != "" {
		return cached, nil
	}
	direct, err := readAccount(ctx, directTimeout, c.direct, key)
	if err != nil && cacheErr == nil && client.IgnoreNotFound(err) != nil {
		return cached, nil // older, and better than none
	}
	return direct, err
}

func readAccount(ctx context.Context, timeout time.Duration, from client.Reader, key types.NamespacedName) (*corev1.ServiceAccount, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	metadata := accountMetadata()
	if err := from.Get(ctx, key, metadata); err != nil {
		return nil, err
	}
	return &corev1.ServiceAccount{ObjectMeta: metadata.ObjectMeta}, nil
}
