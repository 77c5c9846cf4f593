package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/azwi"
)

// Azwi serves several installations of azure-workload-identity's webhook, each at its own
// path. Package azwi has the webhook.
type Azwi struct {
	cluster   *Cluster
	server    *http.Server
	address   string
	authority []byte

	mu     sync.Mutex
	served map[string]int // number of requests by path
	hooks  map[string]azwi.Webhook
}

// StartAzwi starts a server without installations. The caller must close it.
func (c *Cluster) StartAzwi() (*Azwi, error) {
	certificate, err := c.ServingCertificate("azwi")
	if err != nil {
		return nil, err
	}
	authority, err := c.Authority()
	if err != nil {
		return nil, err
	}
	listener, err := tls.Listen("tcp", net.JoinHostPort(NodeAddress, "0"), &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		return nil, err
	}
	s := &Azwi{cluster: c, address: listener.Addr().String(), authority: []byte(authority), served: map[string]int{}, hooks: map[string]azwi.Webhook{}}
	s.server = &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go s.server.Serve(listener) // returns after Close
	return s, nil
}

// Close ends the server.
func (s *Azwi) Close() error { return s.server.Close() }

// ServeHTTP implements [http.Handler].
func (s *Azwi) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.served[r.URL.Path]++
	hook := s.hooks[r.URL.Path]
	s.mu.Unlock()
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	review.Response = s.answer(r.Context(), hook, review.Request)
	_ = json.NewEncoder(w).Encode(review)
}

// answer returns the response to a request. As in azwi's webhook, the patch is the
// difference between the pod before and after.
func (s *Azwi) answer(ctx context.Context, hook azwi.Webhook, request *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	refuse := func(err error) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{UID: request.UID, Result: &metav1.Status{Message: err.Error()}}
	}
	var pod corev1.Pod
	if err := json.Unmarshal(request.Object.Raw, &pod); err != nil {
		return refuse(err)
	}
	account, err := s.cluster.Client.CoreV1().ServiceAccounts(request.Namespace).Get(ctx, pod.Spec.ServiceAccountName, metav1.GetOptions{})
	if err != nil {
		return refuse(err)
	}
	mutated, err := hook.Mutate(&pod, account)
	if err != nil {
		return refuse(err)
	}
	after, err := json.Marshal(mutated)
	if err != nil {
		return refuse(err)
	}
	operations, err := jsonpatch.CreatePatch(request.Object.Raw, after)
	if err != nil {
		return refuse(err)
	}
	patch, err := json.Marshal(operations)
	if err != nil {
		return refuse(err)
	}
	kind := admissionv1.PatchTypeJSONPatch
	return &admissionv1.AdmissionResponse{UID: request.UID, Allowed: true, Patch: patch, PatchType: &kind}
}

// Requests returns the number of requests for an installation.
func (s *Azwi) Requests(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served[path]
}

// Install registers an installation for the pods of one namespace, until
// [Azwi.Uninstall]. It waits until the API server calls it for pods such as probe, and returns its
// path.
func (s *Azwi) Install(ctx context.Context, configuration, namespace string, hook azwi.Webhook, reinvocation admissionregistrationv1.ReinvocationPolicyType, probe *corev1.Pod) (path string, err error) {
	path = "/" + configuration
	s.mu.Lock()
	s.hooks[path] = hook
	s.mu.Unlock()
	url, fail, none := "https://"+s.address+path, admissionregistrationv1.Fail, admissionregistrationv1.SideEffectClassNone
	_, err = s.cluster.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx, &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: configuration},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "mutation.azure-workload-identity.io", ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: s.authority},
			FailurePolicy: &fail, SideEffects: &none, ReinvocationPolicy: &reinvocation, AdmissionReviewVersions: []string{"v1"},
			ObjectSelector:    &metav1.LabelSelector{MatchLabels: map[string]string{inject.UseLabel: "true"}},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: namespace}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return path, Wait(ctx, func(ctx context.Context) error {
		_, err := s.cluster.Client.CoreV1().Pods(namespace).Create(ctx, probe.DeepCopy(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if s.Requests(path) == 0 {
			return fmt.Errorf("the API server does not call %s yet: %w", configuration, err)
		}
		return nil
	})
}

// Uninstall removes a configuration.
func (s *Azwi) Uninstall(configuration string) error {
	return s.cluster.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(context.Background(), configuration, metav1.DeleteOptions{})
}
