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
	// The authority is renewed as seldom as can be: for the moment until each replica
	// has the new certificate, the API server may know only one of the two.
	authorityLifetime = 10 * 365 * 24 * time.Hour

	certificateLifetime = 365 * 24 * time.Hour

	// renewBefore is how long before its end either is renewed.
	renewBefore = 90 * 24 * time.Hour

	// rotationCheck is between looks at how long there is left. A Secret that changes
	// is looked at at once.
	rotationCheck = 12 * time.Hour

	authorityName = "imds-oidc-proxy-webhook-ca"
	fieldOwner    = "imds-oidc-proxy-webhook"
)

// rotate has cert-controller keep the certificate: it makes it, renews it in the
// Secret, and writes the authority into the webhook's configuration. Every replica
// does it; they all write what the same Secret says, and the API server refuses the
// slower of two that change it at once, which then reads what the other wrote.
//
// The channel that it returns is closed when both are in place.
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

// narrowManager gives cert-controller a client that lists and watches no more than
// the two objects it is about, so that the permission can be for these two by name:
// not for every Secret of the namespace, Helm's releases among them.
type narrowManager struct {
	manager.Manager
	cfg certificateFlags
}

// GetConfig is what cert-controller makes its cache with.
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

// narrow adds a name to lists and watches of some resources.
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

// followSecret serves what is in the Secret as soon as it changes. The volume of a
// Secret, which cert-controller expects, comes up to two minutes later; with a new
// authority that would be two minutes of answers that the API server does not trust.
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
		return // cert-controller is about to fill it
	}
	pair, err := tls.X509KeyPair(secret.Data[certName], secret.Data[keyName])
	if err != nil {
		c.log.Warn("the Secret holds no certificate that can be served", zap.Error(err))
		return
	}
	c.store(pair)
	// cert-controller takes this file for the sign that the certificate has arrived. It
	// is the public part.
	if err := os.WriteFile(filepath.Join(dir, certName), secret.Data[certName], 0o600); err != nil {
		c.log.Error("--cert-dir cannot be written", zap.Error(err))
	}
}
