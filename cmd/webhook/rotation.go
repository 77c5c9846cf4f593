package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/open-policy-agent/cert-controller/pkg/rotator"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

const (
	// authorityLifetime is long, because the renewal of the certificate authority has a gap:
	// until each replica has a certificate of the new one, the API server may trust only one
	// of the two.
	authorityLifetime = 10 * 365 * 24 * time.Hour

	certificateLifetime = 365 * 24 * time.Hour

	// renewBefore is how long before their expiry authority and certificate are renewed.
	renewBefore = 90 * 24 * time.Hour

	// rotationCheck is the interval between checks of the expiry. A changed Secret is checked
	// at once.
	rotationCheck = 12 * time.Hour

	authorityName = "imds-oidc-proxy-webhook-ca"
	fieldOwner    = "imds-oidc-proxy-webhook"
)

// rotate runs cert-controller, which creates the certificate, renews it in the Secret, and sets the
// certificate authority in the MutatingWebhookConfiguration. Every replica does this. They all
// write the content of the same Secret. If two change it at the same time, the API server refuses
// the second change, and that replica reads the Secret again.
//
// The returned channel is closed when the certificate and the configuration are ready.
func rotate(mgr manager.Manager, cfg certificateFlags) (<-chan struct{}, error) {
	ready := make(chan struct{})
	dnsName := fmt.Sprintf("%s.%s.svc", cfg.service, cfg.namespace)
	err := rotator.AddRotator(narrowManager{mgr, cfg}, &rotator.CertRotator{
		SecretKey:              types.NamespacedName{Namespace: cfg.namespace, Name: cfg.secret},
		CertDir:                cfg.dir,
		CertName:               certName,
		KeyName:                keyName,
		CAName:                 authorityName,
		CAOrganization:         fieldOwner,
		DNSName:                dnsName,
		ExtraDNSNames:          []string{dnsName + ".cluster.local"},
		IsReady:                ready,
		Webhooks:               []rotator.WebhookInfo{{Name: cfg.configuration, Type: rotator.Mutating}},
		FieldOwner:             fieldOwner,
		CaCertDuration:         authorityLifetime,
		ServerCertDuration:     certificateLifetime,
		LookaheadInterval:      renewBefore,
		RotationCheckFrequency: rotationCheck,
		EnableReadinessCheck:   true,
	})
	return ready, err
}

// narrowManager gives cert-controller a client that lists and watches only the two objects that it
// needs. Thus the webhook needs permission only for these two names, and not for all Secrets of
// the namespace, which include Helm's releases.
type narrowManager struct {
	manager.Manager
	cfg certificateFlags
}

// GetConfig returns the client configuration for cert-controller's cache.
func (m narrowManager) GetConfig() *rest.Config {
	config := rest.CopyConfig(m.Manager.GetConfig())
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return narrow{next: next, names: map[string]string{
			"secrets":                       m.cfg.secret,
			"mutatingwebhookconfigurations": m.cfg.configuration,
		}}
	})
	return config
}

// narrow adds a field selector with a name to lists and watches of some resources.
type narrow struct {
	next  http.RoundTripper
	names map[string]string
}

// RoundTrip implements [http.RoundTripper].
func (n narrow) RoundTrip(r *http.Request) (*http.Response, error) {
	name, collection := n.names[path.Base(r.URL.Path)]
	if !collection || r.Method != http.MethodGet {
		return n.next.RoundTrip(r)
	}
	narrowed := r.Clone(r.Context())
	query := narrowed.URL.Query()
	query.Set("fieldSelector", fields.OneTermEqualSelector("metadata.name", name).String())
	narrowed.URL.RawQuery = query.Encode()
	return n.next.RoundTrip(narrowed)
}

// followSecret loads the certificate from the Secret as soon as the Secret changes. The kubelet
// updates a Secret's volume, which cert-controller expects, up to two minutes later. After a
// change of the certificate authority, the API server would not trust the webhook meanwhile.
func (c *certificate) followSecret(ctx context.Context, mgr manager.Manager, dir string) error {
	informer, err := mgr.GetCache().GetInformer(ctx, &corev1.Secret{})
	if err != nil {
		return fmt.Errorf("watching the certificate's Secret: %w", err)
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { c.loadSecret(object, dir) },
		UpdateFunc: func(_, object any) { c.loadSecret(object, dir) },
	})
	return err
}

func (c *certificate) loadSecret(object any, dir string) {
	secret, ok := object.(*corev1.Secret)
	if !ok || len(secret.Data[certName]) == 0 {
		return // cert-controller has not filled it yet
	}
	pair, err := tls.X509KeyPair(secret.Data[certName], secret.Data[keyName])
	if err != nil {
		c.log.Warn("the Secret contains no valid certificate", zap.Error(err))
		return
	}
	c.store(pair)
	// cert-controller waits for this file. It has no private key.
	if err := os.WriteFile(filepath.Join(dir, certName), secret.Data[certName], 0o600); err != nil {
		c.log.Error("cannot write to --cert-dir", zap.Error(err))
	}
}
