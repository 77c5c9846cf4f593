package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"imds-oidc-proxy/internal/cni"
	"imds-oidc-proxy/internal/cniinstall"
	"imds-oidc-proxy/internal/health"
	"imds-oidc-proxy/internal/nodetaint"
	"imds-oidc-proxy/internal/server"
)

const (
	// unloadTime is the time between the removal of the entry and that of the program:
	// containerd reads the changed list within a second, and the start of a pod's network, which
	// may have begun before, takes seconds.
	unloadTime = 10 * time.Second

	// taintInterval is how often the removal of the taint is tried. Pods wait for it.
	taintInterval = 2 * time.Second

	// maxProbes is how many connections the health port serves at the same time.
	maxProbes = 16
)

// act installs the plugin and keeps it installed until ctx is done, or removes it.
func act(ctx context.Context, o options, log *zap.Logger) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	entry, err := json.Marshal(cni.NewEntry(name, o.exempt.list))
	if err != nil {
		return err
	}
	installer := cniinstall.New(cniinstall.Config{
		Name: name, Program: program, BinDir: o.binDir, ConfDir: o.confDir, Entry: entry, Log: log,
	})
	if o.uninstall {
		return uninstall(ctx, o, installer, log)
	}
	log.Info("installing the plugin", zap.String("version", version), zap.String("bin_dir", o.binDir),
		zap.String("conf_dir", o.confDir), zap.Stringer("exempt_uids", o.exempt))
	work := installer.Run
	if o.taint != "" {
		client, err := taintClient(o)
		if err != nil {
			return err
		}
		work = func(ctx context.Context) error {
			group, ctx := errgroup.WithContext(ctx)
			group.Go(func() error { return installer.Run(ctx) })
			group.Go(func() error { untaint(ctx, installer.Ready, client.Remove, log); return nil })
			return group.Wait()
		}
	}
	return serve(ctx, o.healthAddress, log, installer.Ready, work)
}

// taintClient returns the client that removes the taint, with the pod's service account.
func taintClient(o options) (*nodetaint.Client, error) {
	return nodetaint.New(nodetaint.Config{
		Node: o.node, Taint: o.taint, Dir: nodetaint.ServiceAccountDir,
		Server: net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")),
	})
}

// untaint removes the taint once, when the plugin is ready. It tries until it succeeds: at the
// start of a node, the API server may not be reachable yet.
func untaint(ctx context.Context, ready func() error, remove func(context.Context) (bool, error), log *zap.Logger) {
	last := ""
	for {
		if ready() == nil {
			removed, err := remove(ctx)
			if err == nil {
				log.Info("the node has no taint", zap.Bool("removed", removed))
				return
			}
			if err.Error() != last {
				log.Warn("cannot remove the taint: trying again", zap.Error(err))
			}
			last = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(taintInterval):
		}
	}
}

// uninstall removes the entry first: with an entry without the program, the runtime can neither
// start nor delete pods.
func uninstall(ctx context.Context, o options, installer *cniinstall.Installer, log *zap.Logger) error {
	var removed atomic.Bool
	ready := func() error {
		if !removed.Load() {
			return errors.New("the plugin has not been removed yet")
		}
		return nil
	}
	work := func(ctx context.Context) error {
		if err := remove(ctx, o.removeBinary, installer); err != nil {
			return err
		}
		removed.Store(true)
		log.Info("the plugin is removed")
		if o.stay {
			<-ctx.Done()
		}
		return nil
	}
	address := o.healthAddress
	if !o.stay {
		address = ""
	}
	return serve(ctx, address, log, ready, work)
}

func remove(ctx context.Context, binary bool, installer *cniinstall.Installer) error {
	if err := installer.Uninstall(); err != nil || !binary {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(unloadTime):
	}
	return installer.RemoveBinary()
}

// serve runs work until it returns or ctx is done, and answers the kubelet's probes meanwhile.
func serve(ctx context.Context, address string, log *zap.Logger, ready func() error, work func(context.Context) error) error {
	if address == "" {
		return work(ctx)
	}
	listener, err := server.Listen(ctx, address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /livez", health.Handler("livez", []health.Check{{Name: "ping"}}))
	mux.Handle("GET /readyz", health.Handler("readyz", []health.Check{{Name: "plugin", Run: ready}}))
	probes := server.New(listener, server.Config{Handler: mux, MaxConnections: maxProbes, OneRequest: true, Log: log})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(probes.Serve)
	group.Go(func() error {
		defer probes.Close()
		return work(ctx)
	})
	return group.Wait()
}
