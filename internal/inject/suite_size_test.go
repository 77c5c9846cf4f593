package inject_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/local"
)

// TestSize checks that ten times the pod costs at most 15 times the work. Comparisons and copies in
// library functions cannot be counted, so the work is the CPU time of the thread, which does not
// include the time of other programs. The minimum of several runs leaves out most of what other
// programs do to the caches. A linear function takes 10 to 14 times, a quadratic one up to 100
// times, so that repeating a failed comparison hides no quadratic one.
func TestSize(t *testing.T) {
	const small, large, most = 2_000, 20_000, 15
	for name, pod := range sizedPods {
		t.Run(name, func(t *testing.T) {
			ratio := 0.0
			for range 5 {
				if ratio = float64(work(t, pod(large))) / float64(work(t, pod(small))); ratio <= most {
					t.Logf("%d entries cost %.1f times the work of %d", large, ratio, small)
					return
				}
			}
			t.Errorf("%d entries cost %.1f times the work of %d, want at most %d times", large, ratio, small, most)
		})
	}
}

// work returns the CPU time to inject into a pod, to remove and to compare.
func work(t *testing.T, pod *corev1.Pod) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // its cost depends on the heap of other tests
	least := time.Duration(1<<63 - 1)
	runs := 3
	if local.RaceEnabled {
		runs = 1 // the detector makes them ten times slower, and a comparison that fails is repeated
	}
	for range runs {
		runtime.GC()
		start := threadTime(t)
		if _, err := inject.Pod(pod, account(), config()); err != nil {
			t.Fatal(err)
		}
		inject.Remove(pod)
		inject.Differences(pod, pod)
		least = min(least, threadTime(t)-start)
	}
	return least
}

func threadTime(t *testing.T) time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}

// sizedPods are pods whose lists have n entries each. Every product of two lists occurs in one.
var sizedPods = map[string]func(n int) *corev1.Pod{
	"every list": func(n int) *corev1.Pod {
		pod := injected(everyList(n))
		pod.Spec.Containers = append(pod.Spec.Containers, repeated(n, numbered)...)
		pod.Spec.InitContainers = repeated(n, func(i int) corev1.Container { return corev1.Container{Name: fmt.Sprintf("i%d", i)} })
		return pod
	},
	"every list, without the proxy": func(n int) *corev1.Pod {
		pod := labelled(annotate(inject.InjectProxyAnnotation, "false"), everyList(n))
		pod.Spec.InitContainers = repeated(n, numbered)
		return pod
	},
	"many tokens of an injected volume": func(n int) *corev1.Pod {
		return labelled(func(p *corev1.Pod) {
			token := []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token/azure-identity-token", Audience: azure.Audience}}}
			p.Spec.Volumes = repeated(n, func(i int) corev1.Volume {
				return corev1.Volume{Name: fmt.Sprintf("%s%d", inject.VolumePrefix, i), VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: token}}}
			})
			c := &p.Spec.Containers[0]
			c.VolumeMounts = repeated(n, func(i int) corev1.VolumeMount {
				return corev1.VolumeMount{Name: fmt.Sprintf("%s%d", inject.VolumePrefix, i), MountPath: fmt.Sprintf("/m/%d", i)}
			})
			c.Env = repeated(n, func(i int) corev1.EnvVar {
				return corev1.EnvVar{Name: azure.EnvFederatedTokenFile, Value: fmt.Sprintf("/other/%d", i)}
			})
		})
	},
	"many entries of one name": func(n int) *corev1.Pod {
		return injected(func(p *corev1.Pod) {
			p.Spec.Volumes = repeated(n, func(int) corev1.Volume { return corev1.Volume{Name: "v"} })
			p.Spec.Containers = repeated(n, func(int) corev1.Container { return corev1.Container{Name: "c"} })
			p.Spec.Containers[0].Env = repeated(n, func(int) corev1.EnvVar { return corev1.EnvVar{Name: "E"} })
			p.Spec.Containers[0].VolumeMounts = repeated(n, func(int) corev1.VolumeMount { return corev1.VolumeMount{Name: "v"} })
		})
	},
	"long paths": func(n int) *corev1.Pod {
		return labelled(func(p *corev1.Pod) {
			long := strings.Repeat("/m", 8*n)
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t", Audience: azure.Audience}}},
			}}}}
			p.Spec.Containers = repeated(n, numbered)
			c := &p.Spec.Containers[0]
			c.VolumeMounts = append(repeated(n, mountOfSecret), corev1.VolumeMount{Name: "v", MountPath: long})
			c.Env = []corev1.EnvVar{{Name: azure.EnvFederatedTokenFile, Value: "/elsewhere" + long}}
		})
	},
	"long names": func(n int) *corev1.Pod {
		return labelled(func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: strings.Repeat("v", 8*n), VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: strings.Repeat("t", 8*n), Audience: azure.Audience}}},
			}}}}
			p.Spec.Containers = repeated(n, numbered)
		})
	},
}

// everyList fills the lists of a pod and of its first container with n entries each.
func everyList(n int) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		annotate(inject.RedirectAnnotation, "sealed")(p)
		clientIDs := repeated(n, func(i int) string { return fmt.Sprintf("66666666-6666-4666-8666-%012d", i) })
		p.Annotations[inject.SkipContainersAnnotation] = strings.Join(repeated(n, func(i int) string { return fmt.Sprintf("absent%d", i) }), ";")
		p.Annotations[inject.AllowedClientIDsAnnotation] = clientID + "," + strings.Join(clientIDs, ",")
		p.Annotations[inject.IdentitiesAnnotation] = strings.Join(repeated(n, func(i int) string {
			return fmt.Sprintf("77777777-7777-4777-8777-%012d=%s", i, clientIDs[i])
		}), ",")
		for i := range n {
			p.Annotations[fmt.Sprintf("example.test/%d", i)] = ""
			p.Labels[fmt.Sprintf("example.test/%d", i)] = ""
		}
		mode, user := int32(0o400), int64(1000)
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user, SupplementalGroups: repeated(n, func(i int) int64 { return int64(i + 1) })}
		p.Spec.Volumes = repeated(n, func(i int) corev1.Volume {
			return corev1.Volume{Name: fmt.Sprintf("v%d", i), VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				DefaultMode: &mode, Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t", Audience: "other"}}},
			}}}
		})
		c := &p.Spec.Containers[0]
		c.Env = repeated(n, func(i int) corev1.EnvVar { return corev1.EnvVar{Name: fmt.Sprintf("E%d", i), Value: "/var/run"} })
		c.VolumeMounts = repeated(n, mountOfSecret)
		c.Ports = repeated(n, func(i int) corev1.ContainerPort { return corev1.ContainerPort{ContainerPort: int32(10_000 + i)} })
		c.SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: repeated(n, func(i int) corev1.Capability { return corev1.Capability(fmt.Sprintf("C%d", i)) })}}
	}
}

func numbered(i int) corev1.Container { return corev1.Container{Name: fmt.Sprintf("c%d", i)} }

func mountOfSecret(i int) corev1.VolumeMount {
	return corev1.VolumeMount{Name: fmt.Sprintf("v%d", i), MountPath: fmt.Sprintf("/m/%d", i)}
}

func repeated[T any](n int, element func(int) T) []T {
	list := make([]T, n)
	for i := range list {
		list[i] = element(i)
	}
	return list
}

// TestManyReplaced checks that a pod is refused if many of its containers would be replaced, since
// the API server copies the list for each of them.
func TestManyReplaced(t *testing.T) {
	for n, refused := range map[int]bool{8: false, 9: true} {
		_, err := inject.Pod(injected(func(p *corev1.Pod) {
			p.Spec.InitContainers = repeated(n, func(int) corev1.Container { return corev1.Container{Name: inject.ProxyName} })
		}), account(), config())
		if (err != nil) != refused {
			t.Errorf("%d containers %s: got %v, want a refusal: %t", n, inject.ProxyName, err, refused)
		}
	}
}

// TestCanceled checks that nothing continues after the deadline of an admission.
func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if result, err := inject.PodContext(ctx, injected(), account(), config()); !errors.Is(err, context.Canceled) || len(result.Patch) > 0 {
		t.Errorf("got %d operations, %v; want %v", len(result.Patch), err, context.Canceled)
	}
	if result, err := inject.PodContext(&endsAfter{Context: t.Context(), checks: 10}, injected(func(p *corev1.Pod) {
		p.Spec.Containers = repeated(100, numbered)
	}), account(), config()); !errors.Is(err, context.Canceled) || len(result.Patch) > 0 {
		t.Errorf("during the containers: got %d operations, %v; want %v", len(result.Patch), err, context.Canceled)
	}
}

// endsAfter is a context that ends after a number of checks.
type endsAfter struct {
	context.Context
	checks int
}

func (e *endsAfter) Err() error {
	if e.checks--; e.checks < 0 {
		return context.Canceled
	}
	return nil
}
