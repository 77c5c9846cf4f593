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

// The names of the certificate and its key, in a Secret of type kubernetes.io/tls and as files in
// its volume.
const (
	certName = "tls.crt"
	keyName  = "tls.key"
)

// certificate is the server certificate. It can be replaced while connections are open.
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

// get returns the certificate, for a tls.Config.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair := c.current.Load()
	if pair == nil {
		return nil, errors.New("there is no certificate yet")
	}
	return pair, nil
}

// ready returns an error if there is no certificate, or if it has expired.
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
