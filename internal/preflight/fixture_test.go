package preflight_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/preflight"
)

var now = time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)

// server is an API server in memory.
type server struct {
	// answers has the bodies of GET requests by path. Paths that are missing are not found.
	answers map[string]string
	// forbidden are paths that the person may not read.
	forbidden []string
	// admit is the admission of pods: it may change them.
	admit func(*corev1.Pod) error
	// denied are the verbs and resources that the person may not use.
	denied []string
	dryRun bool // all pods were created as dry runs
}

func (s *server) Get(_ context.Context, path string, _ url.Values) (io.ReadCloser, error) {
	if slices.Contains(s.forbidden, path) {
		return nil, apierrors.NewForbidden(schema.GroupResource{}, "", errors.New("no"))
	}
	body, found := s.answers[path]
	if !found {
		return nil, apierrors.NewNotFound(schema.GroupResource{}, path)
	}
	return io.NopCloser(strings.NewReader(body)), nil
}

func (s *server) Create(_ context.Context, path string, query url.Values, object, answer any) error {
	switch object := object.(type) {
	case *authorizationv1.SelfSubjectAccessReview:
		a := object.Spec.ResourceAttributes
		answer.(*authorizationv1.SelfSubjectAccessReview).Status.Allowed = !slices.Contains(s.denied, a.Verb+" "+a.Resource)
		return nil
	case *corev1.Pod:
		s.dryRun = s.dryRun && query.Get("dryRun") == "All"
		pod := object.DeepCopy()
		err := s.admit(pod)
		*answer.(*corev1.Pod) = *pod
		return err
	}
	return fmt.Errorf("%s: unexpected", path)
}

// certificate returns an authority that is valid until a time.
func certificate(t *testing.T, until time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.AddDate(-1, 0, 0), NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) // base64, in quotes
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// issuer is a published issuer.
func issuer(t *testing.T, keys string) (address string, client *http.Client) {
	t.Helper()
	var s *httptest.Server
	s = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprintf(w, `{"issuer": "%s/", "jwks_uri": "%[1]s/keys"}`, s.URL)
		case "/keys":
			io.WriteString(w, keys)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL + "/", s.Client()
}

const rsaKeys = `{"keys": [{"kty": "RSA", "alg": "RS256"}]}`

// healthy is a cluster without a fault.
func healthy(t *testing.T) (*server, preflight.Config) {
	t.Helper()
	address, client := issuer(t, rsaKeys)
	webhook := `{"items": [{"metadata": {"name": "imds-oidc-proxy"}, "webhooks": [{"name": "pods.imds-oidc-proxy.webhook", "clientConfig": {"caBundle": ` + certificate(t, now.AddDate(1, 0, 0)) + `, "service": {"namespace": "proxy", "name": "webhook"}}}]}]}`
	s := &server{dryRun: true, admit: func(p *corev1.Pod) error {
		if p.Annotations[inject.InjectProxyAnnotation] == "true" {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: inject.ProxyName})
		}
		return nil
	}, answers: map[string]string{
		"/version": `{"gitVersion": "v1.35.2"}`, "/.well-known/openid-configuration": `{"issuer": "` + address + `"}`,
		"/apis":                      `{"groups": [{"name": "apps", "versions": [{"version": "v1"}]}, {"name": "admissionregistration.k8s.io", "versions": [{"version": "v1"}]}, {"name": "aadpodidentity.k8s.io", "versions": [{"version": "v1"}]}]}`,
		"/api/v1/nodes":              `{"items": [{"metadata": {"name": "b"}, "status": {"nodeInfo": {"kubeletVersion": "v1.35.0", "containerRuntimeVersion": "containerd://1.7.0"}}}, {"metadata": {"name": "a"}, "status": {"nodeInfo": {"kubeletVersion": "v1.34.9", "containerRuntimeVersion": "containerd://2.1.0"}}}]}`,
		"/api/v1/namespaces":         `{"items": [{"metadata": {"name": "shop"}}]}`,
		"/api/v1/serviceaccounts":    `{"items": [{"metadata": {"name": "web", "namespace": "shop", "annotations": {"azure.workload.identity/client-id": "11111111-1111-4111-8111-111111111111"}}}]}`,
		"/api/v1/pods":               `{"items": [` + pod("web-1", true) + `]}`,
		"/apis/apps/v1/deployments":  `{"items": [` + deployment("web") + `, ` + webhookDeployment + `]}`,
		"/apis/apps/v1/replicasets":  `{"items": [{"metadata": {"name": "web-5d4f", "namespace": "shop", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "controller": true}]}, "spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}}]}`,
		"/apis/apps/v1/statefulsets": `{"items": []}`, "/apis/apps/v1/daemonsets": `{"items": []}`,
		"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations": webhook,
		"/apis/discovery.k8s.io/v1/namespaces/proxy/endpointslices":           `{"items": [{"endpoints": [{"conditions": {"ready": true}}, {}]}]}`,
	}}
	return s, preflight.Config{HTTP: client, Now: now}
}

const webhookDeployment = `{"metadata": {"name": "webhook", "namespace": "proxy"}, "spec": {"template": {"spec": {"containers": [{"name": "webhook", "args": ["--proxy-image=registry.corp.test/proxy:v1", "--proxy-init-image=registry.corp.test/init@sha256:00"]}]}}}}`

func deployment(account string) string {
	return `{"metadata": {"name": "web", "namespace": "shop"}, "spec": {"template": {"metadata": {"labels": {"azure.workload.identity/use": "true"}, "annotations": {"azure.workload.identity/inject-proxy-sidecar": "true"}}, "spec": {"serviceAccountName": "` + account + `", "containers": [{"name": "c"}]}}}}`
}

// plugin is the DaemonSet of the CNI plugin on two nodes.
func plugin(ready int) string {
	return fmt.Sprintf(`{"items": [{"metadata": {"name": "imds-oidc-proxy-cni", "namespace": "proxy"}, "spec": {"template": {"spec": {"containers": [{"name": "imds-cni", "args": ["install"]}]}}}, "status": {"desiredNumberScheduled": 2, "numberReady": %d}}]}`, ready)
}

func pod(name string, proxied bool) string {
	more := ""
	if proxied {
		more = `, {"name": "azwi-proxy", "image": "x"}`
	}
	return `{"metadata": {"name": "` + name + `", "namespace": "shop", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "controller": true}]}, "spec": {"containers": [{"name": "c"}` + more + `]}}`
}
