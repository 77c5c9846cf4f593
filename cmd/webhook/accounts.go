package main

import (
	"context"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	// current returns an error if the cache no longer follows the API server.
	current func() error
	recent  *lru.Cache[types.NamespacedName, lookup]
	now     func() time.Time
}

const (
	// maxRecent is the maximum number of remembered lookups.
	maxRecent = 1024

	// recentTime is how long a lookup is remembered. The API server's second call follows
	// within a second, as soon as the other webhooks have answered.
	recentTime = 5 * time.Second
)

// lookup is a read from the API server that found no account or no client ID.
type lookup struct {
	account *corev1.ServiceAccount
	err     error
	at      time.Time
	cached  string // the resource version in the cache at that time; empty: none
}

func newAccounts(cache, direct client.Reader, current func() error) *cachedAccounts {
	recent, _ := lru.New[types.NamespacedName, lookup](maxRecent) // fails only for a size below 1
	return &cachedAccounts{cache: cache, direct: direct, current: current, recent: recent, now: time.Now}
}

// account implements [accountReader]. It also reads an account without a client ID from the API
// server, since accounts are created first and annotated later. Each such pod costs one more
// request. The API server's second call for a pod costs none: its answer is that of the first one.
//
// If the cache no longer follows the API server, all accounts are read from there.
func (c *cachedAccounts) account(ctx context.Context, namespace, name string, again bool) (*corev1.ServiceAccount, error) {
	key := types.NamespacedName{Namespace: namespace, Name: name}
	current := c.current() == nil
	cached, cacheErr := readAccount(ctx, cacheTimeout, c.cache, key)
	if current && cacheErr == nil && cached.Annotations[inject.ClientIDAnnotation] != "" {
		return cached, nil
	}
	var cachedVersion string
	if cacheErr == nil {
		cachedVersion = cached.ResourceVersion
	}
	if found, ok := c.recent.Get(key); ok && again && found.cached == cachedVersion && c.now().Sub(found.at) < recentTime {
		return found.account, found.err
	}
	direct, err := c.read(ctx, key)
	switch notFound := apierrors.IsNotFound(err); {
	case notFound || err == nil && direct.Annotations[inject.ClientIDAnnotation] == "":
		c.recent.Add(key, lookup{account: direct, err: err, at: c.now(), cached: cachedVersion})
	case err != nil && current && cacheErr == nil:
		return cached, nil // possibly outdated by a moment, but better than none
	}
	return direct, err
}

// read reads an account from the API server, without the request's place.
func (c *cachedAccounts) read(ctx context.Context, key types.NamespacedName) (account *corev1.ServiceAccount, err error) {
	err = outside(ctx, func() (err error) {
		account, err = readAccount(ctx, directTimeout, c.direct, key)
		return err
	})
	return account, err
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
