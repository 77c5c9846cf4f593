package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"imds-oidc-proxy/internal/inject"
)

// TestAdmission checks the response, the metrics and the log for each kind of request.
func TestAdmission(t *testing.T) {
	for _, test := range []struct {
		name            string
		object          string
		change          func(*admissionv1.AdmissionRequest)
		cached, stored  []client.Object
		fail            error
		result          string
		code            int32
		message         string // part of it
		warning         string
		patched         bool
		reads           int32
		level, inTheLog string
	}{
		{name: "injected", object: podJSON(injected), cached: []client.Object{federated("orders")},
			result: resultInjected, patched: true, level: "info", inTheLog: `"pod":"orders-"`},
		{name: "account is new", object: podJSON(injected), stored: []client.Object{federated("orders")},
			result: resultInjected, patched: true, reads: 1, level: "info"},
		{name: "account was annotated a moment ago", object: podJSON(injected), cached: []client.Object{account("orders", nil)},
			stored: []client.Object{federated("orders")}, result: resultInjected, patched: true, reads: 1, level: "info"},
		{name: "account without client ID, API server away", object: podJSON(injected), cached: []client.Object{account("orders", nil)},
			fail: errors.New("connection refused"), result: resultInjected, patched: true, reads: 1, level: "info"},
		{name: "account deleted", object: podJSON(injected), cached: []client.Object{account("orders", nil)},
			result: resultRefused, code: 400, message: "no service account orders in namespace shop", reads: 1, level: "warn"},
		{name: "no account", object: podJSON(injected),
			result: resultRefused, code: 400, message: "create it before the pod", reads: 1, level: "warn"},
		{name: "no account named", object: strings.Replace(podJSON(injected), `"serviceAccountName":"orders",`, "", 1),
			cached: []client.Object{federated("default")}, result: resultInjected, patched: true, level: "info", inTheLog: `"service_account":"default"`},
		{name: "API server fails", object: podJSON(injected), fail: errors.New("dial tcp 10.0.0.1:443: connection refused"),
			result: resultError, code: 500, message: "its log has the cause, with request_id 4b9d2e71", reads: 1, level: "error", inTheLog: "connection refused"},
		{name: "an invalid annotation", object: podJSON(map[string]string{inject.InjectProxyAnnotation: "maybe"}),
			cached: []client.Object{federated("orders")}, result: resultRefused, code: 400, message: inject.InjectProxyAnnotation, level: "warn"},
		{name: "host network", object: strings.Replace(podJSON(injected), `"spec":{`, `"spec":{"hostNetwork":true,`, 1),
			cached: []client.Object{federated("orders")}, result: resultRefused, code: 400, message: "hostNetwork", level: "warn"},
		{name: "no label", object: strings.Replace(podJSON(injected), `"true"}`, `"false"}`, 1), result: resultSkipped},
		{name: "a mirror pod", object: strings.Replace(podJSON(map[string]string{inject.InjectProxyAnnotation: "true", corev1.MirrorPodAnnotationKey: "0123"}), `"serviceAccountName":"orders",`, "", 1),
			result: resultSkipped, warning: inject.StaticPod},
		{name: "no pod", object: `{"apiVersion":"v1","kind":"Pod","spec":{"containers":"` + canary + `"}}`,
			result: resultRefused, code: 400, message: "does not contain a valid pod", level: "warn"},
		{name: "no object", object: `null`, result: resultRefused, code: 400, message: "does not contain a valid pod", level: "warn"},
		{name: "another kind", object: `{}`, change: func(r *admissionv1.AdmissionRequest) {
			r.Kind = metav1.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
		}, result: resultSkipped},
		{name: "an update", object: podJSON(injected), change: func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update }, result: resultSkipped},
		{name: "a subresource", object: podJSON(injected), change: func(r *admissionv1.AdmissionRequest) { r.SubResource = "binding" }, result: resultSkipped},
		{name: "dry run", object: podJSON(injected), cached: []client.Object{federated("orders")},
			change: func(r *admissionv1.AdmissionRequest) { yes := true; r.DryRun = &yes },
			result: resultInjected, patched: true, level: "info", inTheLog: `"dry_run":true`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, test.cached, test.stored, test.fail)
			got := s.ask(review(test.object, test.change))
			if allowed := test.code == 0; got.Allowed != allowed || !allowed && got.Result.Code != test.code {
				t.Errorf("got allowed %v, %+v; want code %d", got.Allowed, got.Result, test.code)
			}
			if got.Result != nil && (!strings.Contains(got.Result.Message, test.message) || strings.Contains(got.Result.Message, "\n")) {
				t.Errorf("got message %q, want one line with %q", got.Result.Message, test.message)
			}
			if test.warning != "" && !slices.Equal(got.Warnings, []string{test.warning}) {
				t.Errorf("got warnings %q, want %q", got.Warnings, test.warning)
			}
			if patched := len(got.Patch) > 0; patched != test.patched || patched && *got.PatchType != admissionv1.PatchTypeJSONPatch {
				t.Errorf("got patch %s, want one: %v", got.Patch, test.patched)
			}
			if got := s.reads.Load(); got != test.reads {
				t.Errorf("read from the API server %d times, want %d", got, test.reads)
			}
			if got := testutil.ToFloat64(s.metrics.admissions.WithLabelValues(test.result)); got != 1 {
				t.Errorf("admissions_total{result=%q} is %v, want 1", test.result, got)
			}
			s.checkLog(test.level, test.inTheLog)
		})
	}
}

// TestPatchOnTheRawPod checks that the patched pod keeps its unknown fields, and that a second
// request makes no change.
func TestPatchOnTheRawPod(t *testing.T) {
	s := start(t, []client.Object{federated("orders")}, nil, nil)
	object := podJSON(injected)
	patch, err := jsonpatch.DecodePatch(s.ask(review(object, nil)).Patch)
	if err != nil {
		t.Fatal(err)
	}
	patched, err := patch.Apply([]byte(object))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"fieldOfTomorrow":{"a":1}`, canary, `"azwi-proxy-init"`, `"azwi-proxy"`, testClientID, testTenantID} {
		if !strings.Contains(string(patched), want) {
			t.Errorf("no %s in %s", want, patched)
		}
	}
	again := s.ask(review(string(patched), nil))
	if !again.Allowed || len(again.Patch) != 0 {
		t.Errorf("second request: got %v, %s", again.Allowed, again.Patch)
	}
	if got := testutil.ToFloat64(s.metrics.admissions.WithLabelValues(resultUnchanged)); got != 1 {
		t.Errorf("unchanged: %v, want 1", got)
	}
}

// TestWarnings checks that the response has the warnings for the pod's author.
func TestWarnings(t *testing.T) {
	s := start(t, nil, []client.Object{account("orders", nil)}, nil)
	got := s.ask(review(podJSON(injected), nil))
	if !got.Allowed || len(got.Warnings) == 0 || !strings.Contains(strings.Join(got.Warnings, " "), inject.ClientIDAnnotation) {
		t.Errorf("got %+v, want a warning about %s", got, inject.ClientIDAnnotation)
	}
}

// TestManyWarnings checks that the number of warnings and the length of names in the log are
// limited, since the pod's author chooses both.
func TestManyWarnings(t *testing.T) {
	s := start(t, []client.Object{federated("orders")}, nil, nil)
	container := `{"name":"c","securityContext":{"privileged":true}},`
	object := strings.Replace(podJSON(injected), `"containers":[`, `"containers":[`+strings.Repeat(container, 100), 1)
	got := s.ask(review(strings.Replace(object, "orders-", strings.Repeat("o", 10_000), 1), nil))
	if len(got.Warnings) != maxWarnings+1 || got.Warnings[maxWarnings] != "80 more warnings" {
		t.Errorf("got %d warnings, the last is %q", len(got.Warnings), got.Warnings[len(got.Warnings)-1])
	}
	if text := s.log.String(); strings.Contains(text, strings.Repeat("o", 254)) || !strings.Contains(text, strings.Repeat("o", 253)) {
		t.Errorf("logged %s", text)
	}
}

// panicking simulates a bug: it panics with a secret of the pod.
type panicking struct{}

func (panicking) account(context.Context, string, string, bool) (*corev1.ServiceAccount, error) {
	panic(canary)
}

// TestPanic checks that a panic fails only one request, that its value is not disclosed, and that
// the log has the stack.
func TestPanic(t *testing.T) {
	s := start(t, nil, nil, nil)
	s.admit.accounts = panicking{}
	got := s.ask(review(podJSON(injected), nil))
	if got.Allowed || got.Result.Code != http.StatusInternalServerError || strings.Contains(got.Result.Message, canary) {
		t.Errorf("got %+v", got.Result)
	}
	s.checkLog("error", "panicking")
}

// TestOtherRequests sends requests that are not those of an API server.
func TestOtherRequests(t *testing.T) {
	s := start(t, nil, nil, nil)
	for _, test := range []struct {
		name, method, path, contentType, body string
		status                                int
		refused                               bool // the response is a refusal
	}{
		{"another path", "POST", "/", "application/json", "{}", 404, false},
		{"another method", "GET", mutatePath, "", "", 405, false},
		{"no body", "POST", mutatePath, "application/json", "", 200, true},
		{"no request", "POST", mutatePath, "application/json", "{}", 200, true},
		{"no JSON", "POST", mutatePath, "application/json", "token=" + canary, 200, true},
		{"another content type", "POST", mutatePath, "text/plain", "{}", 200, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			request, err := http.NewRequest(test.method, strings.TrimSuffix(s.url, mutatePath)+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", test.contentType)
			answered, err := s.client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer answered.Body.Close()
			body, _ := io.ReadAll(answered.Body)
			if answered.StatusCode != test.status {
				t.Errorf("got %s: %s", answered.Status, body)
			}
			if test.refused && !strings.Contains(string(body), `"allowed":false`) {
				t.Errorf("got %s, want allowed false", body)
			}
		})
	}
	if strings.Contains(s.log.String(), canary) {
		t.Errorf("logged the body: %s", s.log)
	}
}

func encoded(t *testing.T, value any) []byte {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestBodyBound checks that the webhook accepts a pod of the maximum size of an API server, and
// that it answers larger ones with an HTTP status, so that failurePolicy decides about them.
func TestBodyBound(t *testing.T) {
	s := start(t, []client.Object{federated("orders")}, nil, nil)
	padded := func(size int) string {
		object := strings.Replace(podJSON(injected), `"a":1`, `"a":"`+strings.Repeat("a", size)+`"`, 1)
		return string(encoded(t, review(object, nil)))
	}
	of := func(content string) string {
		return strings.Replace(podJSON(injected), `"a":1`, `"a":`+content, 1)
	}
	objects := maxObjects - strings.Count(padded(0), "{")
	for _, test := range []struct {
		name, body string
		status     int
		want       string
	}{
		{"3 MiB", padded(3 << 20), 200, `"allowed":true`},
		{"more than the limit", padded(maxBody), 413, "the AdmissionReview is too large: must be at most 4194304 bytes"},
		{"the maximum number of objects", string(encoded(t, review(of("["+strings.Repeat("{},", objects)+"0]"), nil))), 200, `"allowed":true`},
		{"too many objects", string(encoded(t, review(of("["+strings.Repeat("{},", objects+1)+"0]"), nil))), 413, "the AdmissionReview has 32001 objects: must be at most 32000"},
		{"the longest number", string(encoded(t, review(of(strings.Repeat("1", maxDigits)), nil))), 200, `"allowed":true`},
		{"a longer number", string(encoded(t, review(of(strings.Repeat("1", maxDigits+1)), nil))), 413, "a number of 65537 digits: must be at most 65536"},
	} {
		for _, known := range []bool{true, false} {
			var body io.Reader = strings.NewReader(test.body)
			if !known {
				body = io.MultiReader(body) // without Content-Length
			}
			answered, err := s.client.Post(s.url, "application/json", body)
			if err != nil {
				t.Fatal(err)
			}
			defer answered.Body.Close()
			if body, _ := io.ReadAll(answered.Body); answered.StatusCode != test.status || !strings.Contains(string(body), test.want) {
				t.Errorf("%s, length known: %t: got %s %.300s, want %d %s", test.name, known, answered.Status, body, test.status, test.want)
			}
		}
	}
}

// TestAnnotationPrefix checks that the cache keeps all annotations of service accounts that
// internal/inject reads.
func TestAnnotationPrefix(t *testing.T) {
	for _, a := range inject.Annotations() {
		if strings.Contains(a.On, "account") && !strings.HasPrefix(a.Name, annotationPrefix) {
			t.Errorf("%s is an annotation of service accounts, and keepAnnotations removes it", a.Name)
		}
	}
}

func TestKeepAnnotations(t *testing.T) {
	metadata := accountMetadata()
	metadata.Name, metadata.Namespace, metadata.ResourceVersion = "orders", "shop", "7"
	metadata.Annotations = map[string]string{inject.ClientIDAnnotation: testClientID, "kubectl.kubernetes.io/last-applied-configuration": canary}
	metadata.Labels = map[string]string{"app": "orders"}
	metadata.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	object, err := keepAnnotations(metadata)
	if err != nil {
		t.Fatal(err)
	}
	got := object.(*metav1.PartialObjectMetadata)
	want := metav1.ObjectMeta{Name: "orders", Namespace: "shop", ResourceVersion: "7", Annotations: map[string]string{inject.ClientIDAnnotation: testClientID}}
	if fmt.Sprint(got.ObjectMeta) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got.ObjectMeta, want)
	}
}
