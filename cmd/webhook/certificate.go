package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// The names of the certificate and its key, in a Secret of type kubernetes.io/tls and as files in
// its volume.
const (
	certName = "tls.crt"
	keyName  = "tls.key"
)

const (
	// expiresSoon is how long before its expiry a certificate must have been renewed. The alert
	// for it in the chart has the same time.
	expiresSoon = 14 * 24 * time.Hour

	// expiryCheck is the interval of log lines about a certificate that was not renewed.
	expiryCheck = time.Hour
)

// certificate is the server certificate. It can be replaced while connections are open.
type certificate struct {
	current atomic.Pointer[tls.Certificate]
	renewal []*objectWatch // of what renews the certificate
	metrics *metrics
	log     *zap.Logger
}

func (c *certificate) store(pair tls.Certificate) {
	c.current.Store(&pair)
	if pair.Leaf == nil {
		return
	}
	c.metrics.expiry.Set(float64(pair.Leaf.NotAfter.Unix()))
	c.log.Info("certificate loaded", zap.Strings("dns_names", pair.Leaf.DNSNames), zap.Time("not_after", pair.Leaf.NotAfter))
}

// get returns the certificate, for a tls.Config.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair := c.current.Load()
	if pair == nil {
		return nil, errors.New("there is no certificate yet")
	}
	return pair, nil
}

// ready returns an error if there is no certificate, or if it has expired. The error has the reason if
// it is known. A valid certificate is enough, also while it cannot be renewed: without ready replicas
// the API server would refuse pods at once.
func (c *certificate) ready(now time.Time) error {
	pair, err := c.get(nil)
	if err == nil && pair.Leaf != nil && now.After(pair.Leaf.NotAfter) {
		err = fmt.Errorf("the certificate expired at %s", pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	if err == nil {
		return nil
	}
	return withReason(err, c.renewable())
}

func withReason(err, reason error) error {
	if reason == nil {
		return err
	}
	return fmt.Errorf("%w; %w", err, reason)
}

// renewable returns an error if the webhook does not see a renewed certificate.
func (c *certificate) renewable() error {
	for _, watch := range c.renewal {
		if err := watch.current(); err != nil {
			return err
		}
	}
	return nil
}

// Start logs at an interval that the certificate expires soon, until ctx is done.
func (c *certificate) Start(ctx context.Context) error {
	every(ctx, expiryCheck, func(context.Context) { c.checkExpiry(time.Now()) })
	return nil
}

func (c *certificate) checkExpiry(now time.Time) {
	pair := c.current.Load()
	if pair == nil || pair.Leaf == nil || pair.Leaf.NotAfter.Sub(now) > expiresSoon {
		return
	}
	c.log.Error("the certificate expires soon and was not renewed", zap.Time("not_after", pair.Leaf.NotAfter), zap.Error(c.renewable()))
}

// runner runs parts of the program, such as a manager.
type runner interface {
	Add(manager.Runnable) error
}

// followFiles loads the mounted certificate, and loads it again when it changes: the kubelet
// updates the volume about a minute after cert-manager has renewed the Secret.
func (c *certificate) followFiles(parts runner, dir string) error {
	watcher, err := certwatcher.New(filepath.Join(dir, certName), filepath.Join(dir, keyName))
	if err != nil {
		return flagError("cert-dir", dir, err)
	}
	watcher.RegisterCallback(c.store)
	return parts.Add(watcher)
}
