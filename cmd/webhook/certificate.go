package main

import (
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

// The names of a certificate's parts, as keys of a Secret of type kubernetes.io/tls
// and as files of its volume.
const (
	certName = "tls.crt"
	keyName  = "tls.key"
)

// certificate is what the webhook shows to the API server. It changes while
// connections go on.
type certificate struct {
	current atomic.Pointer[tls.Certificate]
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

// get is for a tls.Config.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair := c.current.Load()
	if pair == nil {
		return nil, errors.New("there is no certificate yet")
	}
	return pair, nil
}

// ready is an error while there is nothing to show, or nothing that holds.
func (c *certificate) ready(now time.Time) error {
	pair, err := c.get(nil)
	if err != nil {
		return err
	}
	if pair.Leaf != nil && now.After(pair.Leaf.NotAfter) {
		return fmt.Errorf("the certificate expired at %s", pair.Leaf.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// runner runs parts of the program; a manager is one.
type runner interface {
	Add(manager.Runnable) error
}

// followFiles loads the certificate that is mounted, and again when it changes: the
// kubelet swaps a Secret's volume some minute after cert-manager has renewed it.
func (c *certificate) followFiles(parts runner, dir string) error {
	watcher, err := certwatcher.New(filepath.Join(dir, certName), filepath.Join(dir, keyName))
	if err != nil {
		return flagError("cert-dir", dir, err)
	}
	watcher.RegisterCallback(c.store)
	return parts.Add(watcher)
}
