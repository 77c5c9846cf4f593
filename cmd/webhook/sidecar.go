package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	serverversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/rest"
)

const (
	// sidecarMinor is the first minor version of Kubernetes 1 in which init containers with
	// restartPolicy Always (native sidecars) are enabled by default.
	sidecarMinor = 29

	// versionInterval is the interval between requests for the API server's version. An
	// upgrade of the control plane is noticed after this time at the latest.
	versionInterval = 10 * time.Minute

	versionTimeout = 10 * time.Second
)

// sidecars decides whether proxies are injected as native sidecars.
type sidecars struct {
	mode    string // of --native-sidecar
	version func(context.Context) (serverversion.Info, error)
	metrics *metrics
	log     *zap.Logger

	native atomic.Bool
}

// decide gets the API server's version if the mode is auto. If this fails, the previous decision
// stays.
func (s *sidecars) decide(ctx context.Context) error {
	native := s.mode == sidecarOn
	if s.mode == sidecarAuto {
		ctx, cancel := context.WithTimeout(ctx, versionTimeout)
		defer cancel()
		info, err := s.version(ctx)
		if err != nil {
			return fmt.Errorf("getting the API server's version: %w", err)
		}
		if native, err = hasSidecars(info); err != nil {
			return err
		}
	}
	if s.native.Swap(native) != native {
		s.log.Info("native sidecar mode changed", zap.Bool("native_sidecar", native), zap.String("mode", s.mode))
	}
	s.metrics.native.Set(map[bool]float64{true: 1}[native])
	return nil
}

// Start calls decide at an interval until ctx is done. It does not change existing pods.
func (s *sidecars) Start(ctx context.Context) error {
	if s.mode != sidecarAuto {
		return nil
	}
	every(ctx, versionInterval, func(ctx context.Context) {
		if err := s.decide(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("checking for native sidecars failed", zap.Error(err))
		}
	})
	return nil
}

// hasSidecars reports whether a version has native sidecars. Some distributions have a minor
// version such as 29+.
func hasSidecars(info serverversion.Info) (bool, error) {
	major, majorErr := strconv.Atoi(info.Major)
	minor, minorErr := strconv.Atoi(strings.TrimRight(info.Minor, "+"))
	if majorErr != nil || minorErr != nil {
		return false, fmt.Errorf("unknown version %q.%q of the API server: set --native-sidecar to on or off", info.Major, info.Minor)
	}
	return major > 1 || major == 1 && minor >= sidecarMinor, nil
}

// serverVersion returns a function that gets the API server's version.
func serverVersion(client rest.Interface) func(context.Context) (serverversion.Info, error) {
	return func(ctx context.Context) (serverversion.Info, error) {
		var info serverversion.Info
		body, err := client.Get().AbsPath("/version").Do(ctx).Raw()
		if err != nil {
			return info, err
		}
		return info, json.Unmarshal(body, &info)
	}
}
