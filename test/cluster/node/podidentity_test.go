package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

// podIdentityNamespace is the namespace of aad-pod-identity's own workloads.
const podIdentityNamespace = "aad-pod-identity"

const podIdentityGroup = "aadpodidentity.k8s.io"

// podIdentityDefinitions are minimal definitions of aad-pod-identity's kinds.
func podIdentityDefinitions() (text string) {
	for plural, kind := range map[string]string{"azureidentities": "AzureIdentity", "azureidentitybindings": "AzureIdentityBinding",
		"azureassignedidentities": "AzureAssignedIdentity", "azurepodidentityexceptions": "AzurePodIdentityException"} {
		text += strings.NewReplacer("PLURAL", plural, "SINGULAR", strings.ToLower(kind), "KIND", kind).Replace(`---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: PLURAL.aadpodidentity.k8s.io, annotations: {api-approved.kubernetes.io: "unapproved, for a test"}}
spec:
  group: aadpodidentity.k8s.io
  scope: Namespaced
  names: {plural: PLURAL, singular: SINGULAR, kind: KIND}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
`)
	}
	return text
}

// podIdentityManifests are aad-pod-identity's daemon, and an identity with a binding for each workload.
func podIdentityManifests(namespace string) string {
	text := `---
apiVersion: v1
kind: Namespace
metadata: {name: aad-pod-identity}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: nmi, namespace: aad-pod-identity}
spec:
  selector: {matchLabels: {app: nmi}}
  template:
    metadata: {labels: {app: nmi}}
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 2
      containers: [{name: nmi, image: "localhost/nmi:test", args: [--operation-mode=standard]}]
`
	for _, w := range migrated {
		text += strings.NewReplacer("NAMESPACE", namespace, "NAME", w.name, "CLIENT", w.clientID).Replace(`---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {name: NAME-identity, namespace: NAMESPACE}
spec: {type: 0, clientID: CLIENT, resourceID: /subscriptions/99999999-9999-4999-8999-999999999999/resourcegroups/shop/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME-identity}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: NAME-binding, namespace: NAMESPACE}
spec: {azureIdentity: NAME-identity, selector: NAME}
`)
	}
	return text
}

// podIdentity stands in for aad-pod-identity in standard mode: for MIC, which assigns identities to pods by their
// label, and for NMI, which answers the token requests of these pods at the metadata address.
type podIdentity struct {
	t         *testing.T
	namespace string
	silence   atomic.Bool
}

func startPodIdentity(ctx context.Context, t *testing.T, namespace string) *podIdentity {
	t.Helper()
	p := &podIdentity{t: t, namespace: namespace}
	pods, err := running.Client.CoreV1().Pods(namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bindings, err := p.objects("azureidentitybindings").Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.assign(ctx, pods.ResultChan(), bindings.ResultChan())
	}()
	running.Decoy.InterceptTokens(p)
	t.Cleanup(func() {
		running.Decoy.InterceptTokens(nil)
		pods.Stop()
		bindings.Stop()
		<-ended
	})
	return p
}

func (p *podIdentity) objects(plural string) dynamic.ResourceInterface {
	return running.Dynamic.Resource(schema.GroupVersionResource{Group: podIdentityGroup, Version: "v1", Resource: plural}).Namespace(p.namespace)
}

// expectSilence makes each further token request an error.
func (p *podIdentity) expectSilence() { p.silence.Store(true) }

// assign is MIC. It returns when both watches have ended.
func (p *podIdentity) assign(ctx context.Context, pods, bindings <-chan watch.Event) {
	for pods != nil || bindings != nil {
		var open bool
		select {
		case _, open = <-pods:
			if !open {
				pods = nil
			}
		case _, open = <-bindings:
			if !open {
				bindings = nil
			}
		}
		if !open {
			continue
		}
		if err := p.reconcile(ctx); err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) { // not found: the kinds are deleted
			p.t.Errorf("MIC: %v", err)
		}
	}
}

// reconcile creates and deletes AzureAssignedIdentities.
func (p *podIdentity) reconcile(ctx context.Context) error {
	pods, err := running.Client.CoreV1().Pods(p.namespace).List(ctx, metav1.ListOptions{LabelSelector: "aadpodidbinding"})
	if err != nil {
		return err
	}
	bindings, err := p.objects("azureidentitybindings").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	assigned, err := p.objects("azureassignedidentities").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	wanted := map[string]*unstructured.Unstructured{}
	for i := range pods.Items {
		for _, b := range bindings.Items {
			if selector, _, _ := unstructured.NestedString(b.Object, "spec", "selector"); selector == pods.Items[i].Labels["aadpodidbinding"] {
				a := p.assignment(&pods.Items[i], &b)
				wanted[a.GetName()] = a
			}
		}
	}
	for _, a := range assigned.Items {
		if wanted[a.GetName()] == nil {
			if err := p.objects("azureassignedidentities").Delete(ctx, a.GetName(), metav1.DeleteOptions{}); err != nil {
				return err
			}
		}
		delete(wanted, a.GetName())
	}
	for _, a := range wanted {
		if _, err := p.objects("azureassignedidentities").Create(ctx, a, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	return nil
}

func (p *podIdentity) assignment(pod *corev1.Pod, binding *unstructured.Unstructured) *unstructured.Unstructured {
	identity, _, _ := unstructured.NestedString(binding.Object, "spec", "azureIdentity")
	ref := func(name string) map[string]any {
		return map[string]any{"metadata": map[string]any{"namespace": p.namespace, "name": name}}
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": podIdentityGroup + "/v1", "kind": "AzureAssignedIdentity",
		"metadata": map[string]any{"name": pod.Name + "-" + identity, "namespace": p.namespace},
		"spec": map[string]any{"pod": pod.Name, "podNamespace": p.namespace, "nodename": pod.Spec.NodeName,
			"azureIdentityRef": ref(identity), "azureBindingRef": ref(binding.GetName())},
		"status": map[string]any{"status": "Assigned"},
	}}
}

// nmiToken is the token that NMI gives for an identity.
func nmiToken(clientID string) string { return "aad-pod-identity:" + clientID }

// ServeHTTP is NMI: it finds the pod by its address, and the identity by what MIC has assigned.
func (p *podIdentity) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	address, _, _ := net.SplitHostPort(r.RemoteAddr)
	if p.silence.Load() {
		p.t.Errorf("a token request of %s reached aad-pod-identity after the change", address)
	}
	clientID, err := p.identityOf(r.Context(), address)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	p.log(r.Context(), clientID)
	expires := time.Now().Add(time.Hour).Unix()
	_ = json.NewEncoder(w).Encode(map[string]string{"access_token": nmiToken(clientID), "expires_in": "3600", "expires_on": fmt.Sprint(expires),
		"not_before": "0", "resource": r.URL.Query().Get("resource"), "token_type": "Bearer"})
}

// log writes to the log of NMI's daemon that a pod got a token.
func (p *podIdentity) log(ctx context.Context, clientID string) {
	line := strings.NewReader("matched identityType:0 clientid:" + clientID)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://127.0.0.1:2579/", line)
	if err == nil {
		var answer *http.Response
		if answer, err = http.DefaultClient.Do(request); err == nil {
			answer.Body.Close()
		}
	}
	if err != nil {
		p.t.Errorf("the log of NMI: %v", err)
	}
}

func (p *podIdentity) identityOf(ctx context.Context, address string) (clientID string, err error) {
	pods, err := running.Client.CoreV1().Pods(p.namespace).List(ctx, metav1.ListOptions{FieldSelector: "status.podIP=" + address})
	if err != nil || len(pods.Items) != 1 {
		return "", fmt.Errorf("no pod has the address %s: %v", address, err)
	}
	assigned, err := p.objects("azureassignedidentities").List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	for _, a := range assigned.Items {
		if pod, _, _ := unstructured.NestedString(a.Object, "spec", "pod"); pod == pods.Items[0].Name {
			name, _, _ := unstructured.NestedString(a.Object, "spec", "azureIdentityRef", "metadata", "name")
			identity, err := p.objects("azureidentities").Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return "", err
			}
			clientID, _, err = unstructured.NestedString(identity.Object, "spec", "clientID")
			return clientID, err
		}
	}
	return "", fmt.Errorf("no identity is assigned to %s", pods.Items[0].Name)
}
