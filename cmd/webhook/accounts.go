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
	// cacheTimeout is the timeout of a read from the cache, which is in memory, but may not
	// be filled yet.
	cacheTimeout = time.Second

	// directTimeout is the timeout of a read from the API server, which waits for the
	// response of the webhook meanwhile.
	directTimeout = 4 * time.Second
)

// accountMetadata returns an empty object for the metadata of a service account. This program
// reads only the annotations.
func accountMetadata() *metav1.PartialObjectMetadata {
	metadata := new(metav1.PartialObjectMetadata)
	metadata.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
	return metadata
}

// keepAnnotations removes everything from a service account except its name and the annotations
// that this program reads, to save memory in the cache. Most of the size is in other annotations,
// such as kubectl's copy of the whole object.
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

// annotationPrefix is the prefix of all annotations of service accounts that internal/inject
// reads. A test checks this.
const annotationPrefix = "azure.workload.identity/"

// cachedAccounts reads service accounts from the cache, and missing ones from the API server: the
// cache gets a new account with a delay, and a pod may be created before.
type cachedAccounts struct {
	cache, direct client.Reader
}

// account implements [accountReader]. It also reads an account without a client ID from the API
// server, since accounts are created first and annotated later. There are few such pods, and each
// costs one more request.
func (c cachedAccounts) account(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	key := types.NamespacedName{Namespace: namespace, Name: name}
	cached, cacheErr := readAccount(ctx, cacheTimeout, c.cache, key)
	if cacheErr == nil && cached.Annotations[inject.ClientIDAnnotation] != "" {
		return cached, nil
	}
	direct, err := readAccount(ctx, directTimeout, c.direct, key)
	if err != nil && cacheErr == nil && client.IgnoreNotFound(err) != nil {
		return cached, nil // possibly outdated, but better than none
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
