package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"imds-oidc-proxy/test/cluster"
)

// TestManyPodsWithoutClientID creates the pods of a large Deployment whose service account has no
// client ID, and pods with a client ID in another namespace meanwhile. Each pod of the Deployment
// costs a read from the API server. No pod may be refused, and the pods with a client ID must not
// wait for the others.
func TestManyPodsWithoutClientID(t *testing.T) {
	const (
		pods     = 300
		atATime  = 50 // a controller creates several pods at the same time
		longWait = 5 * time.Second
	)
	ctx, cancel := context.WithTimeout(t.Context(), 4*testTimeout)
	defer cancel()
	plain, annotated := newNamespace(ctx, t, privileged), appNamespace(ctx, t)
	makeAccount(ctx, t, plain, "app")
	mustCreate(ctx, t, annotated, injected(), "")

	config := rest.CopyConfig(running.REST)
	config.WarningHandler = rest.NoWarnings{} // one for each pod
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	create := func(namespace, name string) error {
		pod := injected(func(p *corev1.Pod) { p.Name = name })
		_, err := client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
		return err
	}
	started := time.Now()
	names, failures, done := make(chan string), make(chan error, pods+1), make(chan struct{})
	var plainPods, annotatedPods sync.WaitGroup
	for range atATime {
		plainPods.Go(func() {
			for name := range names {
				if err := create(plain, name); err != nil {
					failures <- fmt.Errorf("without a client ID: %w", err)
				}
			}
		})
	}
	var waits []time.Duration
	annotatedPods.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			before := time.Now()
			if err := create(annotated, fmt.Sprintf("annotated-%d", i)); err != nil {
				failures <- fmt.Errorf("with a client ID: %w", err)
				return
			}
			waits = append(waits, time.Since(before))
		}
	})
	for i := range pods {
		names <- fmt.Sprintf("plain-%d", i)
	}
	close(names)
	plainPods.Wait()
	took := time.Since(started)
	close(done)
	annotatedPods.Wait()
	close(failures)
	for err := range failures {
		t.Error(err)
	}
	if len(waits) == 0 {
		t.Fatal("no pod with a client ID was created meanwhile")
	}
	slices.Sort(waits)
	t.Logf("%d pods without client ID in %s; %d pods with one meanwhile, median %s, maximum %s", pods, took, len(waits), waits[len(waits)/2], waits[len(waits)-1])
	if longest := waits[len(waits)-1]; longest > longWait {
		t.Errorf("a pod with a client ID waited for %s, want at most %s", longest, longWait)
	}
	// client-go's limit of 5 requests per second, which this test must notice, takes a minute.
	if limited := pods / 5 * time.Second; took > limited/2 {
		t.Errorf("%d pods took %s, which is half of what 5 requests per second take", pods, took)
	}
}

// TestTooManyObjects checks that the author of a pod whose review exceeds a limit reads the reason,
// where failurePolicy is Fail.
func TestTooManyObjects(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	_, _, err := create(ctx, t, appNamespace(ctx, t), injected(func(p *corev1.Pod) {
		p.Spec.Tolerations = make([]corev1.Toleration, 32_000)
	}))
	if err == nil || !strings.Contains(err.Error(), "objects: must be at most 32000") {
		t.Errorf("got %.300v, want a refusal that names the limit", err)
	}
}

// TestPermissionWithdrawn checks that a webhook that may no longer read service accounts does not
// stay ready: its memory would have accounts that are gone. One that may no longer read the Secret of
// its certificate stays ready, with a warning.
func TestPermissionWithdrawn(t *testing.T) {
	t.Parallel() // it waits for a minute
	for i, test := range []struct {
		own, path string
		bindings  func(ctx context.Context, namespace string) error // removes them
		status    int
		want      string
	}{
		{"withdrawn", "/readyz", removeClusterRoleBinding, http.StatusServiceUnavailable, "service-accounts: service accounts could not be listed"},
		{"unrenewed", "/readyz?verbose", removeRoleBindings, http.StatusOK, "[!]certificate-renewal warning: Secrets could not be listed"},
	} {
		t.Run(test.own, func(t *testing.T) {
			t.Parallel()
			port := firstPort + 60 + 10*i
			ctx, cancel := context.WithTimeout(t.Context(), 4*testTimeout)
			defer cancel()
			if _, err := startWebhook(ctx, test.own, port); err != nil {
				t.Fatal(err)
			}
			namespace := appNamespace(ctx, t, ownWebhookLabel, test.own)
			mustCreate(ctx, t, namespace, injected(), "")
			if err := test.bindings(ctx, test.own); err != nil {
				t.Fatal(err)
			}
			url := fmt.Sprintf("http://%s:%d%s", cluster.NodeAddress, port+1, test.path)
			if err := cluster.Wait(ctx, func(ctx context.Context) error { return answers(ctx, url, test.status, test.want) }); err != nil {
				t.Fatal(err)
			}
			if test.status == http.StatusOK {
				mustCreate(ctx, t, namespace, injected(func(p *corev1.Pod) { p.Name = "later" }), "")
			}
		})
	}
}

// removeClusterRoleBinding removes the ClusterRoleBinding of the webhook in a namespace.
func removeClusterRoleBinding(ctx context.Context, namespace string) error {
	bindings, err := running.Client.RbacV1().ClusterRoleBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	removed := slices.DeleteFunc(bindings.Items, func(b rbacv1.ClusterRoleBinding) bool {
		return !slices.ContainsFunc(b.Subjects, func(s rbacv1.Subject) bool { return s.Namespace == namespace })
	})
	if len(removed) == 0 {
		return errors.New("the webhook has no ClusterRoleBinding")
	}
	for _, b := range removed {
		err = errors.Join(err, running.Client.RbacV1().ClusterRoleBindings().Delete(ctx, b.Name, metav1.DeleteOptions{}))
	}
	return err
}

// removeRoleBindings removes the RoleBindings in the namespace of a webhook.
func removeRoleBindings(ctx context.Context, namespace string) error {
	bindings := running.Client.RbacV1().RoleBindings(namespace)
	list, err := bindings.List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) == 0 {
		return fmt.Errorf("the RoleBindings of the webhook: %d, %w", len(list.Items), err)
	}
	return bindings.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
}

// answers checks the answer to a GET.
func answers(ctx context.Context, url string, status int, part string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if response.StatusCode != status || !strings.Contains(string(body), part) {
		return fmt.Errorf("%s %s, %w, want %d %s", response.Status, body, err, status, part)
	}
	return nil
}
