package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/local"
)

// TestSize checks that ten times the manifest costs at most 15 times the work, in each style. The test
// of internal/inject with the same name says how the work is measured.
func TestSize(t *testing.T) {
	const small, large, most = 150, 1_500, 15
	for name, encode := range map[string]func(any) ([]byte, error){
		"JSON in one line": json.Marshal,
		"indented JSON":    func(v any) ([]byte, error) { return json.MarshalIndent(v, "", "  ") },
		"YAML":             yaml.Marshal,
	} {
		t.Run(name, func(t *testing.T) {
			ratio := 0.0
			for range 5 {
				if ratio = float64(work(t, encode, large)) / float64(work(t, encode, small)); ratio <= most {
					return
				}
			}
			t.Errorf("%d containers cost %.1f times the work of %d, want at most %d times", large, ratio, small, most)
		})
	}
}

// work returns the CPU time to inject into a pod of n containers and to remove it again.
func work(t *testing.T, encode func(any) ([]byte, error), n int) time.Duration {
	t.Helper()
	pod := corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name:        "big",
			Labels:      map[string]string{inject.UseLabel: "true"},
			Annotations: map[string]string{inject.InjectProxyAnnotation: "true", inject.SkipContainersAnnotation: strings.Repeat("a;", 10*n)},
		},
	}
	for i := range n {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: fmt.Sprintf("c%d", i), Image: "registry.example.test/a"})
	}
	manifest, err := encode(pod)
	if err != nil {
		t.Fatal(err)
	}
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
		var injected, messages bytes.Buffer
		settings := []string{"--tenant-id=22222222-2222-4222-8222-222222222222", "--proxy-image=registry.example.test/p:v1", "--proxy-init-image=registry.example.test/i:v1"}
		if code := run(append([]string{"inject"}, settings...), bytes.NewReader(manifest), &injected, &messages); code != exitOK {
			t.Fatalf("exit code %d: %s", code, messages.String())
		}
		if code := run([]string{"uninject"}, &injected, io.Discard, &messages); code != exitOK {
			t.Fatalf("exit code %d: %s", code, messages.String())
		}
		least = min(least, threadTime(t)-start)
	}
	return least
}

func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}
