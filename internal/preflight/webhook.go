package preflight

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// The names of the webhooks that add the sidecar.
const (
	ownWebhook  = "pods.imds-oidc-proxy.webhook"
	azwiWebhook = "mutation.azure-workload-identity.io"
)

// soon is how long before the end of an authority a warning is due.
const soon = 14 * 24 * time.Hour

// webhooks checks the webhooks that add tokens: endpoints and certificate.
func (r *run) webhooks(ctx context.Context) {
	found := map[string]bool{}
	for _, o := range r.survey.All("admissionregistration.k8s.io", "MutatingWebhookConfiguration") {
		var configuration admissionv1.MutatingWebhookConfiguration
		if runtime.DefaultUnstructuredConverter.FromUnstructured(o.Body, &configuration) != nil {
			continue
		}
		for _, w := range configuration.Webhooks {
			if w.Name == ownWebhook || w.Name == azwiWebhook {
				found[w.Name] = true
				r.webhook(ctx, o.Name, w)
			}
		}
	}
	r.installed = len(found) > 0
	switch {
	case found[ownWebhook] && found[azwiWebhook]:
		r.add(Note, "", "docs/webhook.md", "azure-workload-identity's webhook runs beside this project's")
	case found[azwiWebhook]:
		r.add(Warning, "it injects its own proxy: install this project's webhook beside it, or use imds-migrate inject", "docs/images.md", "only azure-workload-identity's webhook is installed")
	case !found[ownWebhook] && r.Pre:
		r.add(Note, "install it, or write the sidecar into manifests with imds-migrate inject", "docs/webhook.md", "this project's webhook is not installed yet")
	case !found[ownWebhook]:
		r.add(Warning, "install it, or write the sidecar into manifests with imds-migrate inject", "docs/webhook.md", "this project's webhook is not installed")
	}
}

func (r *run) webhook(ctx context.Context, name string, w admissionv1.MutatingWebhook) {
	if status, text := authority(w.ClientConfig.CABundle, r.Now); status != OK {
		r.add(status, "see the log of the webhook, or renew its certificate", "docs/webhook.md", "%s: %s", name, text)
	} else {
		r.ok("%s: %s", name, text)
	}
	service := w.ClientConfig.Service
	if service == nil {
		r.add(Skipped, "", "", "%s: its URL is reached by the API server only", name)
		return
	}
	ready, err := r.readyEndpoints(ctx, service.Namespace, service.Name)
	switch {
	case err != nil:
		r.add(Skipped, "", "", "the endpoints of service %s/%s: %v", service.Namespace, service.Name, err)
	case ready == 0:
		r.add(Fault, "look at the pods of the webhook: kubectl --namespace="+service.Namespace+" get pods", "docs/webhook.md", "service %s/%s has no ready endpoint", service.Namespace, service.Name)
	case ready == 1:
		r.add(Warning, "run two replicas: pods are refused while the only one restarts", "docs/webhook.md", "service %s/%s has one ready endpoint", service.Namespace, service.Name)
	default:
		r.ok("service %s/%s has %d ready endpoints", service.Namespace, service.Name, ready)
	}
}

// authority checks the certificate authorities with which the API server verifies a webhook.
func authority(bundle []byte, now time.Time) (Status, string) {
	var last time.Time
	count := 0
	for rest := bundle; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return Fault, "the certificate authority in its configuration is not valid"
		}
		count++
		if certificate.NotAfter.After(last) {
			last = certificate.NotAfter
		}
	}
	switch {
	case count == 0:
		return Fault, "its configuration has no certificate authority: the API server cannot verify it"
	case !now.Before(last):
		return Fault, "its certificate authority has expired on " + last.UTC().Format(time.DateOnly)
	case now.Add(soon).After(last):
		return Warning, "its certificate authority expires on " + last.UTC().Format(time.DateOnly)
	}
	return OK, "its certificate authority is valid until " + last.UTC().Format(time.DateOnly)
}

// readyEndpoints returns the number of ready endpoints of a service.
func (r *run) readyEndpoints(ctx context.Context, namespace, service string) (ready int, err error) {
	body, err := r.client.Get(ctx, "/apis/discovery.k8s.io/v1/namespaces/"+namespace+"/endpointslices", url.Values{"labelSelector": {discoveryv1.LabelServiceName + "=" + service}})
	if err != nil {
		return 0, fmt.Errorf("%s", strings.Join(strings.Fields(err.Error()), " "))
	}
	defer body.Close()
	var slices discoveryv1.EndpointSliceList
	if err := json.NewDecoder(io.LimitReader(body, 16<<20)).Decode(&slices); err != nil {
		return 0, err
	}
	for _, slice := range slices.Items {
		for _, endpoint := range slice.Endpoints {
			if endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready {
				ready++
			}
		}
	}
	return ready, nil
}
