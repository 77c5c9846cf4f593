package apiserver

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/azwi"
)

// azwiServer serves several installations of azure-workload-identity's webhook, each at its
// own path.
type azwiServer struct {
	address   string
	authority []byte

	mu     sync.Mutex
	served map[string]int // number of requests by path
	hooks  map[string]azwi.Webhook
}

func startAzwi(t *testing.T) *azwiServer {
	t.Helper()
	certificate, err := running.ServingCertificate("azwi")
	if err != nil {
		t.Fatal(err)
	}
	authority, err := running.Authority()
	if err != nil {
		t.Fatal(err)
	}
	listener, err := tls.Listen("tcp", net.JoinHostPort(cluster.NodeAddress, "0"), &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	s := &azwiServer{address: listener.Addr().String(), authority: []byte(authority), served: map[string]int{}, hooks: map[string]azwi.Webhook{}}
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go server.Serve(listener) // returns after Close
	t.Cleanup(func() { server.Close() })
	return s
}

func (s *azwiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.served[r.URL.Path]++
	hook := s.hooks[r.URL.Path]
	s.mu.Unlock()
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	review.Response = answer(r.Context(), hook, review.Request)
	_ = json.NewEncoder(w).Encode(review)
}

// answer returns the response to a request. As in azwi's webhook, the patch is the
// difference between the pod before and after.
func answer(ctx context.Context, hook azwi.Webhook, request *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	refuse := func(err error) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{UID: request.UID, Result: &metav1.Status{Message: err.Error()}}
	}
	var pod corev1.Pod
	if err := json.Unmarshal(request.Object.Raw, &pod); err != nil {
		return refuse(err)
	}
	account, err := running.Client.CoreV1().ServiceAccounts(request.Namespace).Get(ctx, pod.Spec.ServiceAccountName, metav1.GetOptions{})
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

// requests returns the number of requests for an installation.
func (s *azwiServer) requests(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served[path]
}

// install registers an installation for the pods of one namespace, waits until the API
// server calls it, and returns its path.
func (s *azwiServer) install(ctx context.Context, t *testing.T, configuration, namespace string, hook azwi.Webhook, reinvocation admissionregistrationv1.ReinvocationPolicyType) (path string) {
	t.Helper()
	path = "/" + configuration
	s.mu.Lock()
	s.hooks[path] = hook
	s.mu.Unlock()
	url, fail, none := "https://"+s.address+path, admissionregistrationv1.Fail, admissionregistrationv1.SideEffectClassNone
	configurations := running.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	_, err := configurations.Create(ctx, &admissionregistrationv1.MutatingWebhookConfiguration{
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
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = configurations.Delete(context.Background(), configuration, metav1.DeleteOptions{}) })
	err = cluster.Wait(ctx, func(ctx context.Context) error {
		_, err := running.Client.CoreV1().Pods(namespace).Create(ctx, injected(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if s.requests(path) == 0 {
			return fmt.Errorf("the API server does not call %s yet: %w", configuration, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}
