package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	serverversion "k8s.io/apimachinery/pkg/version"
)

func TestHasSidecars(t *testing.T) {
	for _, test := range []struct {
		major, minor string
		want, wrong  bool
	}{
		{"1", "28", false, false},
		{"1", "29", true, false},
		{"1", "29+", true, false}, // as some distributions write it
		{"1", "34", true, false},
		{"2", "0", true, false},
		{"0", "31", false, false},
		{"", "", false, true},
		{"1", "x", false, true},
	} {
		got, err := hasSidecars(serverversion.Info{Major: test.major, Minor: test.minor})
		if got != test.want || (err != nil) != test.wrong {
			t.Errorf("%s.%s: got %v, %v", test.major, test.minor, got, err)
		}
		if test.wrong && !strings.Contains(err.Error(), "--native-sidecar") {
			t.Errorf("%v does not name the flag", err)
		}
	}
}

// TestNativeSidecar checks that on and off make no request, and that auto gets the version at an
// interval and keeps its decision after an error.
func TestNativeSidecar(t *testing.T) {
	for _, mode := range []string{sidecarOn, sidecarOff} {
		s := &sidecars{mode: mode, metrics: newMetrics(), log: zap.NewNop()}
		if err := s.decide(t.Context()); err != nil || s.native.Load() != (mode == sidecarOn) {
			t.Errorf("%s: got %v, %v", mode, s.native.Load(), err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards minor and fail
		minor, fail := "28", error(nil)
		s := &sidecars{mode: sidecarAuto, metrics: newMetrics(), log: zap.NewNop(), version: func(context.Context) (serverversion.Info, error) {
			mu.Lock()
			defer mu.Unlock()
			return serverversion.Info{Major: "1", Minor: minor}, fail
		}}
		if err := s.decide(t.Context()); err != nil || s.native.Load() {
			t.Fatalf("1.28: got %v, %v", s.native.Load(), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() { _ = s.Start(ctx) }()
		check := func(newMinor string, newFail error, want bool) {
			t.Helper()
			mu.Lock()
			minor, fail = newMinor, newFail
			mu.Unlock()
			time.Sleep(versionInterval) // on synctest's clock
			synctest.Wait()
			if got := s.native.Load(); got != want {
				t.Errorf("1.%s, %v: native %v, want %v", newMinor, newFail, got, want)
			}
			if got := testutil.ToFloat64(s.metrics.native) == 1; got != want {
				t.Errorf("1.%s, %v: the metric says %v", newMinor, newFail, got)
			}
		}
		check("29", nil, true)
		check("28", errors.New("connection refused"), true)
		check("28", nil, false)
	})
}
