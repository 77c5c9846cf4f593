package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/logging"
)

const (
	testClientID = "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"
	testTenantID = "11111111-2222-4333-8444-555555555555"
	// canary stands for a secret in a pod.
	canary = "canary-3f9a1c77"
)

var testConfig = inject.Config{
	ProxyImage:     "registry.example.test/imds-oidc-proxy:v0.1.0",
	ProxyInitImage: "registry.example.test/imds-oidc-proxy-init:v0.1.0",
	TenantID:       testTenantID,
}

// testServer is the webhook with TLS and a fake API server.
type testServer struct {
	t       *testing.T
	url     string
	client  *http.Client
	log     *bytes.Buffer
	metrics *metrics
	reads   atomic.Int32 // reads from the API server, not from the cache
	admit   *admitter

	outdated error                // of the cache; nil: it is current
	slow     atomic.Pointer[gate] // for reads from the API server; nil: none
}

// gate stops reads from the API server until it is opened.
type gate struct{ entered, open chan struct{} }

// start runs the webhook with the given service accounts in the cache and in the API server. If
// fail is not nil, it is the API server's response.
func start(t *testing.T, cached, stored []client.Object, fail error) *testServer {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	s := &testServer{t: t, log: new(bytes.Buffer), metrics: newMetrics()}
	counted := interceptor.Funcs{Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
		s.reads.Add(1)
		if g := s.slow.Load(); g != nil {
			g.entered <- struct{}{}
			<-g.open
		}
		if fail != nil {
			return fail
		}
		return c.Get(ctx, key, obj, opts...)
	}}
	log := logging.New(s.log, logging.Config{})
	s.admit = &admitter{
		accounts: newAccounts(
			fake.NewClientBuilder().WithScheme(scheme).WithObjects(cached...).Build(),
			fake.NewClientBuilder().WithScheme(scheme).WithObjects(stored...).WithInterceptorFuncs(counted).Build(),
			func() error { return s.outdated },
		),
		decoder: admission.NewDecoder(scheme),
		config:  func() inject.Config { return testConfig },
		metrics: s.metrics, log: log, now: time.Now,
	}
	s.listen(log)
	return s
}

func (s *testServer) listen(log *zap.Logger) {
	s.t.Helper()
	handler, err := admissionHandler(s.admit, zapr.NewLogger(log))
	if err != nil {
		s.t.Fatal(err)
	}
	web := httptest.NewUnstartedServer(nil)
	server := &server{peers: newPeers(s.metrics), cert: newCertificate(), minVersion: tls.VersionTLS13, handler: handler, draining: new(atomic.Bool), log: log}
	web.Config, web.Listener = server.newHTTPServer(), server.peers.limit(web.Listener)
	web.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	web.StartTLS()
	s.t.Cleanup(web.Close)
	s.url, s.client = web.URL+mutatePath, web.Client()
}

func account(name string, annotations map[string]string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: annotations}}
}

func federated(name string) *corev1.ServiceAccount {
	return account(name, map[string]string{inject.ClientIDAnnotation: testClientID})
}

// podJSON returns a pod with the label, a secret, and an unknown field.
func podJSON(annotations map[string]string) string {
	marshalled, err := json.Marshal(annotations)
	if err != nil {
		panic(err)
	}
	return `{"apiVersion":"v1","kind":"Pod",
		"metadata":{"generateName":"orders-","labels":{"azure.workload.identity/use":"true"},"annotations":` + string(marshalled) + `},
		"spec":{"fieldOfTomorrow":{"a":1},"serviceAccountName":"orders",
			"containers":[{"name":"app","image":"registry.example.test/app:1","env":[{"name":"PASSWORD","value":"` + canary + `"}]}]}}`
}

var injected = map[string]string{inject.InjectProxyAnnotation: "true"}

// review returns a request of an API server.
func review(object string, change func(*admissionv1.AdmissionRequest)) *admissionv1.AdmissionReview {
	request := &admissionv1.AdmissionRequest{
		UID:       "4b9d2e71-6c8f-4a05-b3e2-d1f70895ac64",
		Kind:      metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
		Resource:  metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
		Namespace: "shop", Operation: admissionv1.Create,
		UserInfo: authenticationv1.UserInfo{Username: "system:serviceaccount:kube-system:replicaset-controller"},
		Object:   runtime.RawExtension{Raw: []byte(object)},
	}
	if change != nil {
		change(request)
	}
	return &admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request:  request,
	}
}

// ask sends a request and decodes the response as an API server does.
func (s *testServer) ask(sent *admissionv1.AdmissionReview) *admissionv1.AdmissionResponse {
	s.t.Helper()
	answered, err := s.client.Post(s.url, "application/json", bytes.NewReader(encoded(s.t, sent)))
	if err != nil {
		s.t.Fatal(err)
	}
	defer answered.Body.Close()
	var got admissionv1.AdmissionReview
	if err := json.NewDecoder(answered.Body).Decode(&got); err != nil {
		s.t.Fatal(err)
	}
	if got.Response == nil || got.Response.UID != sent.Request.UID || got.APIVersion != sent.APIVersion || got.Kind != sent.Kind {
		s.t.Fatalf("got %+v, want an answer to %s", got, sent.Request.UID)
	}
	return got.Response
}

// checkLog checks that the log has one line of the level, or no line for an empty level, and no
// secret of the pod.
func (s *testServer) checkLog(level, part string) {
	s.t.Helper()
	lines := strings.TrimSpace(s.log.String())
	if level == "" && lines != "" {
		s.t.Errorf("logged %s", lines)
	}
	if level != "" && (strings.Count(lines, "\n") != 0 || !strings.Contains(lines, `"level":"`+level+`"`) || !strings.Contains(lines, part)) {
		s.t.Errorf("logged %s, want one line of level %s with %s", lines, level, part)
	}
	if strings.Contains(lines, canary) {
		s.t.Errorf("logged a secret of the pod: %s", lines)
	}
}
