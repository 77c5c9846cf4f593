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
	// sidecarMinor is the minor version of Kubernetes 1 since which init containers
	// with restartPolicy Always are on by default.
	sidecarMinor = 29

	// versionInterval is between looks at the API server's version. An upgrade of the
	// control plane takes this long to be noticed at the most.
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

// decide asks for the version, where that matters. When the server cannot be asked,
// what was decided before holds.
func (s *sidecars) decide(ctx context.Context) error {
	native := s.mode == sidecarOn
	if s.mode == sidecarAuto {
		ctx, cancel := context.WithTimeout(ctx, versionTimeout)
		defer cancel()
		info, err := s.version(ctx)
		if err != nil {
			return fmt.Errorf("asking the API server for its version: %w", err)
		}
		if native, err = hasSidecars(info); err != nil {
			return err
		}
	}
	if s.native.Swap(native) != native {
		s.log.Info("native sidecars decided upon", zap.Bool("native_sidecar", native), zap.String("mode", s.mode))
	}
	s.metrics.native.Set(map[bool]float64{true: 1}[native])
	return nil
}

// Start decides again from time to time, until ctx ends. Pods that are there
// already stay as they are.
func (s *sidecars) Start(ctx context.Context) error {
	if s.mode != sidecarAuto {
		return nil
	}
	tick := time.NewTicker(versionInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := s.decide(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("native sidecars not decided upon anew", zap.Error(err))
			}
		}
	}
}

// hasSidecars reads versions such as 1 and 29+, as distributions write them.
func hasSidecars(info serverversion.Info) (bool, error) {
	major, majorErr := strconv.Atoi(info.Major)
	minor, minorErr := strconv.Atoi(strings.TrimRight(info.Minor, "+"))
	if majorErr != nil || minorErr != nil {
		return false, fmt.Errorf("the API server says that its version is %q.%q: say --native-sidecar=on or off", info.Major, info.Minor)
	}
	return major > 1 || major == 1 && minor >= sidecarMinor, nil
}

// serverVersion asks an API server for its version.
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
