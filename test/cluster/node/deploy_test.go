package node

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/entra"
)

const (
	// clientID is the example client ID in deploy/.
	clientID = "66666666-7777-4888-9999-aaaaaaaaaaaa"

	// application is the image with the clients of the SDKs for Go; see TestMain.
	application = "localhost/azidentity:test"

	// testTimeout limits each test. A pod usually starts in 3 seconds; a machine under
	// load needs more.
	testTimeout = time.Minute
)

// trust adds a federated credential for a service account of the cluster to the fake Entra,
// and returns its subject.
func trust(namespace, account string) string {
	subject := "system:serviceaccount:" + namespace + ":" + account
	running.Entra.AddApplication(entra.Application{ClientID: clientID,
		Credentials: []entra.FederatedCredential{{Issuer: cluster.Issuer, Subject: subject}}})
	return subject
}

// applyVariant applies a directory of deploy/, with the images of this test and the fake
// Entra as authority host. edit changes each object first; it may be nil.
func applyVariant(ctx context.Context, t *testing.T, directory string, edit func(*unstructured.Unstructured)) {
	t.Helper()
	objects, err := cluster.Render(directory)
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range objects {
		if namespace := object.GetNamespace(); namespace != "" {
			makeNamespace(ctx, t, namespace)
		}
		if object.GetKind() == "ConfigMap" {
			set(t, object, running.Entra.AuthorityHost(), "data", "AZURE_AUTHORITY_HOST")
		}
		if err := cluster.WithImages(object, application); err != nil {
			t.Fatal(err)
		}
		if edit != nil {
			edit(object)
		}
		if _, err := running.Apply(ctx, object, false); err != nil {
			t.Fatal(err)
		}
	}
}

func makeNamespace(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace"}}
	object.SetName(name)
	if _, err := running.Apply(ctx, object, false); err != nil {
		t.Fatal(err)
	}
}

// set sets the field of an object at the path fields.
func set(t *testing.T, object *unstructured.Unstructured, value any, fields ...string) {
	t.Helper()
	if err := unstructured.SetNestedField(object.Object, value, fields...); err != nil {
		t.Fatal(err)
	}
}

// makeIdle returns an edit that makes a workload's only container wait, so that a test can
// run the client in it.
func makeIdle(t *testing.T) func(*unstructured.Unstructured) {
	return func(object *unstructured.Unstructured) {
		containers, found, err := unstructured.NestedSlice(object.Object, "spec", "template", "spec", "containers")
		if err != nil {
			t.Fatal(err)
		}
		if found {
			containers[0].(map[string]any)["command"] = []any{"/pause"}
			set(t, object, containers, "spec", "template", "spec", "containers")
		}
	}
}

// podOf returns the pod that the label selector matches, once it meets the condition.
func podOf(ctx context.Context, t *testing.T, namespace, selector string, condition func(*corev1.Pod) error) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		pods, err := running.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return err
		}
		if len(pods.Items) == 0 {
			return errNoPod
		}
		pod = &pods.Items[0]
		return condition(pod)
	})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// checkToken checks the output of a client. It must be a token that Entra issued to clientID
// for an assertion that the API server signed for the subject.
func checkToken(t *testing.T, output, subject string) {
	t.Helper()
	var answer struct{ Token string }
	if err := json.Unmarshal([]byte(output), &answer); err != nil {
		t.Fatalf("the client printed %q: %v", output, err)
	}
	token, err := running.Entra.VerifyAccessToken(answer.Token)
	if err != nil {
		t.Fatalf("the client printed %.300q, which is not a token of Entra: %v", output, err)
	}
	if token.ClientID != clientID {
		t.Errorf("the token is for client ID %s, want %s", token.ClientID, clientID)
	}
	for _, exchange := range running.Entra.Exchanges() {
		if exchange.TokenID == token.ID {
			if exchange.Issuer != cluster.Issuer || exchange.Subject != subject || exchange.Audience != entra.DefaultAudience {
				t.Errorf("the assertion has issuer %q, subject %q, audience %q; want %q, %q, %q", exchange.Issuer, exchange.Subject,
					exchange.Audience, cluster.Issuer, subject, entra.DefaultAudience)
			}
			return
		}
	}
	t.Errorf("Entra has no exchange with token %s", token.ID)
}

// checkNoNodeTokens checks that the node's IMDS got no token request, except in its first
// since requests.
func checkNoNodeTokens(t *testing.T, since int) {
	t.Helper()
	for _, request := range running.Decoy.Requests()[since:] {
		if strings.Contains(strings.ToLower(request), "identity") {
			t.Errorf("the node's IMDS got the request %q", request)
		}
	}
}

func TestDeploymentOfManifests(t *testing.T) {
	ctx := startTest(t)
	subject := trust("demo", "app")
	applyVariant(ctx, t, "deployment", makeIdle(t))
	pod := podOf(ctx, t, "demo", "app=app", cluster.Running)
	output, err := running.Exec(ctx, "demo", pod.Name, "app", "/azidentity")
	if err != nil {
		t.Fatal(err)
	}
	checkToken(t, output, subject)
}

func TestJobOfManifests(t *testing.T) {
	ctx := startTest(t)
	subject := trust("demo", "nightly")
	applyVariant(ctx, t, "job", nil)
	pod := podOf(ctx, t, "demo", "job-name=nightly", cluster.Succeeded)
	for _, container := range []string{"download", "nightly"} {
		output, err := running.Logs(ctx, "demo", pod.Name, container, false)
		if err != nil {
			t.Fatal(err)
		}
		checkToken(t, output, subject)
	}
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		job, err := running.Client.BatchV1().Jobs("demo").Get(ctx, "nightly", metav1.GetOptions{})
		if err == nil && job.Status.Succeeded != 1 {
			err = errNotComplete
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
