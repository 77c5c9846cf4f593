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
	// clientID is the made-up identity of deploy/.
	clientID = "66666666-7777-4888-9999-aaaaaaaaaaaa"

	// application is the image of an SDK's client; see main_test.go.
	application = "localhost/azidentity:test"

	// patience is for a pod to come up on a machine under load: 3 seconds are usual.
	patience = time.Minute
)

// trust makes Entra trust a service account of the cluster, as a federated
// credential does, and returns the subject.
func trust(namespace, account string) string {
	subject := "system:serviceaccount:" + namespace + ":" + account
	running.Entra.AddApplication(entra.Application{ClientID: clientID,
		Credentials: []entra.FederatedCredential{{Issuer: cluster.Issuer, Subject: subject}}})
	return subject
}

// applyVariant applies a directory of deploy/, with the images of this test, and the
// stand-in Entra as authority. edit, if any, changes what is to be run.
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

// set sets a field of an object.
func set(t *testing.T, object *unstructured.Unstructured, value any, fields ...string) {
	t.Helper()
	if err := unstructured.SetNestedField(object.Object, value, fields...); err != nil {
		t.Fatal(err)
	}
}

// idle has a workload's only container do nothing, for a test to exec the client in.
func idle(t *testing.T) func(*unstructured.Unstructured) {
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

// podOf waits for a pod with the label app=… or of a Job, as the condition wants it.
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

// checkToken checks what a client printed: a token that Entra issued to the identity,
// for an assertion that the API server had signed for the subject.
func checkToken(t *testing.T, output, subject string) {
	t.Helper()
	var answer struct{ Token string }
	if err := json.Unmarshal([]byte(output), &answer); err != nil {
		t.Fatalf("the client printed %q: %v", output, err)
	}
	token, err := running.Entra.VerifyAccessToken(answer.Token)
	if err != nil {
		t.Fatalf("the client printed %.300q: not a token of Entra: %v", output, err)
	}
	if token.ClientID != clientID {
		t.Errorf("a token of client ID %s, want %s", token.ClientID, clientID)
	}
	for _, exchange := range running.Entra.Exchanges() {
		if exchange.TokenID == token.ID {
			if exchange.Issuer != cluster.Issuer || exchange.Subject != subject || exchange.Audience != entra.DefaultAudience {
				t.Errorf("traded for a token of issuer %q, subject %q, audience %q; want %q, %q, %q", exchange.Issuer, exchange.Subject,
					exchange.Audience, cluster.Issuer, subject, entra.DefaultAudience)
			}
			return
		}
	}
	t.Errorf("Entra remembers no exchange for token %s", token.ID)
}

// checkNodeUntouched checks that nobody has asked the node's IMDS for a token since it
// had that many requests.
func checkNodeUntouched(t *testing.T, since int) {
	t.Helper()
	for _, request := range running.Decoy.Requests()[since:] {
		if strings.Contains(strings.ToLower(request), "identity") {
			t.Errorf("the node's IMDS was asked %q", request)
		}
	}
}

func TestDeploymentOfManifests(t *testing.T) {
	ctx := begin(t)
	subject := trust("demo", "app")
	applyVariant(ctx, t, "deployment", idle(t))
	pod := podOf(ctx, t, "demo", "app=app", cluster.Running)
	output, err := running.Exec(ctx, "demo", pod.Name, "app", "/azidentity")
	if err != nil {
		t.Fatal(err)
	}
	checkToken(t, output, subject)
}

func TestJobOfManifests(t *testing.T) {
	ctx := begin(t)
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
