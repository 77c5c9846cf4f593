package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/entra"
)

const (
	clientID = "66666666-7777-4888-9999-aaaaaaaaaaaa"

	// relistPeriod is how often the kubelet looks at the containers of all pods.
	relistPeriod = time.Second

	// podTimeout bounds the life of one pod. It usually takes less than 5 seconds.
	podTimeout = time.Minute
)

type bench struct {
	cluster   *cluster.Cluster
	namespace string
	account   *corev1.ServiceAccount
	samples   map[string][]sample // by form
}

// sample is what one pod took, from the call that creates it.
type sample struct {
	running time.Duration // until the application ran
	token   time.Duration // until it had its first token; in a plain pod, as running
	failed  int           // requests before that
}

func newBench(c *cluster.Cluster) (*bench, error) {
	ctx, cancel := context.WithTimeout(context.Background(), podTimeout)
	defer cancel()
	namespace, err := c.NewNamespace(ctx, nil)
	if err != nil {
		return nil, err
	}
	account, err := c.Client.CoreV1().ServiceAccounts(namespace).Create(ctx, &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Annotations: map[string]string{inject.ClientIDAnnotation: clientID}}}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	c.Entra.AddApplication(entra.Application{ClientID: clientID, Credentials: []entra.FederatedCredential{
		{Issuer: cluster.Issuer, Subject: "system:serviceaccount:" + namespace + ":" + account.Name}}})
	return &bench{cluster: c, namespace: namespace, account: account, samples: map[string][]sample{}}, nil
}

// run starts n pods of each form, one pod at a time, and prints the table.
func (b *bench) run(n int) error {
	for _, f := range forms { // the first pod of a form reads its images from the disk
		if _, err := b.start(f); err != nil {
			return err
		}
	}
	for round := range n {
		for i := range forms {
			f := forms[(i+round)%len(forms)] // each form is once first
			// A pod is gone at a moment that depends on the kubelet's look at all containers.
			time.Sleep(relistPeriod * time.Duration(round) / time.Duration(n))
			s, err := b.start(f)
			if err != nil {
				return err
			}
			b.samples[f.name] = append(b.samples[f.name], s)
		}
		fmt.Printf("round %2d of %d, first tokens in the order of the table:", round+1, n)
		for _, f := range forms {
			fmt.Printf(" %s", milliseconds(b.samples[f.name][round].token))
		}
		fmt.Println(" ms")
	}
	return b.print()
}

// start starts a pod of the form, waits until its application has ended, and deletes it.
func (b *bench) start(f form) (s sample, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), podTimeout)
	defer cancel()
	pod, err := f.make(b, b.plain())
	if err != nil {
		return s, fmt.Errorf("%s: %w", f.name, err)
	}
	began := time.Now()
	if _, err := b.cluster.Client.CoreV1().Pods(b.namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return s, fmt.Errorf("%s: %w", f.name, err)
	}
	var ended *corev1.ContainerStateTerminated
	_, err = b.cluster.WaitPod(ctx, b.namespace, pod.Name, func(pod *corev1.Pod) error {
		ended = applicationEnd(pod)
		if ended == nil {
			return fmt.Errorf("the application has not ended: %s", cluster.Describe(pod))
		}
		return nil
	})
	if err == nil {
		s, err = read(ended, began)
	}
	if err == nil {
		err = b.remove(ctx, pod.Name)
	}
	if err != nil {
		return s, fmt.Errorf("%s: %w", f.name, err)
	}
	return s, nil
}

// plain returns a pod whose only container is the application.
func (b *bench) plain() *corev1.Pod {
	grace := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Namespace: b.namespace},
		Spec: corev1.PodSpec{
			ServiceAccountName:            b.account.Name,
			RestartPolicy:                 corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: "app", Image: clientImage}},
		},
	}
}

func applicationEnd(pod *corev1.Pod) *corev1.ContainerStateTerminated {
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name == "app" {
			return s.State.Terminated
		}
	}
	return nil
}

// read returns what the application reported.
func read(ended *corev1.ContainerStateTerminated, began time.Time) (sample, error) {
	var report struct {
		Started, Answered int64
		Failed            int
		Error             string
	}
	if err := json.Unmarshal([]byte(ended.Message), &report); err != nil {
		return sample{}, fmt.Errorf("the application ended with exit code %d and the message %q: %w", ended.ExitCode, ended.Message, err)
	}
	if report.Answered == 0 {
		if report.Failed > 0 {
			return sample{}, fmt.Errorf("the application got no token in %d requests; the last error: %s", report.Failed, report.Error)
		}
		report.Answered = report.Started
	}
	since := func(nanoseconds int64) time.Duration { return time.Unix(0, nanoseconds).Sub(began) }
	return sample{since(report.Started), since(report.Answered), report.Failed}, nil
}

// remove deletes a pod and waits until it is gone, so that its end does not delay the next one.
func (b *bench) remove(ctx context.Context, name string) error {
	now := int64(0)
	if err := b.cluster.Client.CoreV1().Pods(b.namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		return err
	}
	return cluster.Wait(ctx, func(ctx context.Context) error {
		_, err := b.cluster.Client.CoreV1().Pods(b.namespace).Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return err
		}
		return fmt.Errorf("pod %s still exists", name)
	})
}
