package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/zapr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	crlog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	crmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/loglimit"
)

// stopGrace is the timeout of the whole shutdown after the drain. It is longer than the server's
// timeout for requests in flight.
const stopGrace = stopTimeout + time.Second

// serve runs the webhook until ctx is done.
func serve(ctx context.Context, cfg config, stderr io.Writer) error {
	limit := loglimit.New(nil)
	unlimited := logging.New(stderr, cfg.logging)
	log := limit.Apply(unlimited)
	useLog(log)

	w, err := newWebhook(ctx, cfg, log)
	if err != nil {
		return err
	}
	for _, collector := range w.metrics.collectors() {
		if err := crmetrics.Registry.Register(collector); err != nil {
			return err
		}
		defer func(c prometheus.Collector) { crmetrics.Registry.Unregister(c) }(collector)
	}
	if err := w.manager.Add(everyReplica(func(ctx context.Context) error { return limit.Run(ctx, unlimited) })); err != nil {
		return err
	}
	log.Info("starting the webhook", zap.String("version", version), zap.String("cert_mode", cfg.certificates.mode))
	defer log.Info("webhook stopped")
	return w.run(ctx, cfg.drain)
}

// useLog sets the global loggers that Kubernetes' libraries use.
func useLog(log *zap.Logger) {
	logger := zapr.NewLogger(log)
	crlog.SetLogger(logger)
	klog.SetLogger(logger.WithName("client-go"))
}

// everyReplica is a part of the program that runs in every replica, without leader election.
type everyReplica func(context.Context) error

func (f everyReplica) Start(ctx context.Context) error { return f(ctx) }
func (everyReplica) NeedLeaderElection() bool          { return false }

// webhook is the running program.
type webhook struct {
	manager  manager.Manager
	cert     *certificate
	rotated  <-chan struct{} // nil with certMounted
	sidecars *sidecars
	accounts *objectWatch
	server   *server
	metrics  *metrics
	draining atomic.Bool

	health      *plainServer
	metricsPort *plainServer // nil: none

	log *zap.Logger
}

func newWebhook(ctx context.Context, cfg config, log *zap.Logger) (*webhook, error) {
	access, err := apiServer(cfg.kubeconfig)
	if err != nil {
		return nil, err
	}
	w := &webhook{metrics: newMetrics(), log: log}
	w.cert = &certificate{metrics: w.metrics, log: log}
	w.addWatches(access, cfg.certificates.mode)
	if w.manager, err = newManager(access, cfg, log); err != nil {
		return nil, err
	}
	// Started now, so that the cache is filled before the first request.
	if _, err := w.manager.GetCache().GetInformer(ctx, accountMetadata(), cache.BlockUntilSynced(false)); err != nil {
		return nil, fmt.Errorf("watching service accounts: %w", err)
	}
	if err := w.startWatches(cfg.certificates); err != nil {
		return nil, err
	}
	if err := w.addCertificate(ctx, cfg.certificates); err != nil {
		return nil, err
	}
	if err := w.addSidecars(ctx, access, cfg.nativeSidecar); err != nil {
		return nil, err
	}
	if err := w.addServer(cfg); err != nil {
		return nil, err
	}
	return w, w.addPlainServers(ctx, cfg)
}

// addPlainServers opens the ports of health and metrics. The first one is open before the service
// accounts are read, and until the last request is answered.
func (w *webhook) addPlainServers(ctx context.Context, cfg config) (err error) {
	if w.health, err = newPlainServer(ctx, "health-address", cfg.healthAddress, w.metrics, w.log); err != nil || cfg.metricsAddress == "" {
		return err
	}
	w.metricsPort, err = newPlainServer(ctx, "metrics-address", cfg.metricsAddress, w.metrics, w.log)
	return err
}

// apiServer returns the access to the API server. It has no client-side rate limit, because an
// admission waits for these requests: client-go's default of 5 requests per second would limit the
// creation of pods in the whole cluster. The API server limits its clients by API Priority and
// Fairness, and places bounds the number of requests that wait.
func apiServer(kubeconfig string) (*rest.Config, error) {
	access, err := rest.InClusterConfig()
	if kubeconfig != "" {
		access, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, flagError("kubeconfig", kubeconfig, err)
	}
	access.UserAgent = "imds-oidc-proxy-webhook/" + version
	access.QPS = -1
	return access, nil
}

// newManager returns a manager whose cache has the service accounts, and with certRotated the
// Secret of the certificate. It lists and watches nothing else.
func newManager(access *rest.Config, cfg config, log *zap.Logger) (manager.Manager, error) {
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	grace := stopGrace
	byObject := map[client.Object]cache.ByObject{accountMetadata(): {Transform: keepAnnotations}}
	if cfg.certificates.mode == certRotated {
		byObject[&corev1.Secret{}] = cache.ByObject{
			Namespaces: map[string]cache.Config{cfg.certificates.namespace: {
				FieldSelector: fields.OneTermEqualSelector("metadata.name", cfg.certificates.secret),
			}},
			Transform: cache.TransformStripManagedFields(),
		}
	}
	return manager.New(access, manager.Options{
		Scheme:                  scheme,
		Logger:                  zapr.NewLogger(log),
		Cache:                   cache.Options{ByObject: byObject, ReaderFailOnMissingInformer: true},
		Metrics:                 metricsserver.Options{BindAddress: "0"}, // none: its connections have no limit
		GracefulShutdownTimeout: &grace,
	})
}

// newScheme returns a scheme with only the kinds that this program uses.
func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(corev1.AddToScheme(scheme), admissionv1.AddToScheme(scheme))
}

func (w *webhook) addCertificate(ctx context.Context, cfg certificateFlags) error {
	if err := w.manager.Add(everyReplica(w.cert.Start)); err != nil {
		return err
	}
	if cfg.mode == certMounted {
		return w.cert.followFiles(w.manager, cfg.dir)
	}
	if err := w.cert.followSecret(ctx, w.manager, cfg.dir); err != nil {
		return err
	}
	var err error
	w.rotated, err = rotate(w.manager, cfg)
	return err
}

func (w *webhook) addSidecars(ctx context.Context, access *rest.Config, mode string) error {
	versioned := rest.CopyConfig(access)
	versioned.GroupVersion = &schema.GroupVersion{}
	asker, err := discovery.NewDiscoveryClientForConfigAndClient(versioned, w.manager.GetHTTPClient())
	if err != nil {
		return err
	}
	w.sidecars = &sidecars{mode: mode, version: serverVersion(asker.RESTClient()), metrics: w.metrics, log: w.log}
	if err := w.sidecars.decide(ctx); err != nil {
		return err
	}
	return w.manager.Add(everyReplica(w.sidecars.Start))
}

func (w *webhook) addServer(cfg config) error {
	admit := &admitter{
		accounts: newAccounts(w.manager.GetCache(), w.manager.GetAPIReader(), w.accounts.current),
		decoder:  admission.NewDecoder(w.manager.GetScheme()),
		config: func() inject.Config {
			c := cfg.inject
			c.PostStart, c.RecordValues = !w.sidecars.native.Load(), true
			return c
		},
		metrics: w.metrics, log: w.log, now: time.Now,
	}
	handler, err := admissionHandler(admit, zapr.NewLogger(w.log))
	if err != nil {
		return err
	}
	w.server = &server{
		address: cfg.address, minVersion: tlsVersions[cfg.tlsMinVersion], cert: w.cert, peers: newPeers(w.metrics),
		handler: handler, draining: &w.draining, log: w.log,
	}
	return w.manager.Add(everyReplica(w.server.Start))
}

// admissionHandler returns the handler that decodes and encodes AdmissionReviews.
func admissionHandler(admit *admitter, log logr.Logger) (http.Handler, error) {
	return admission.StandaloneWebhook(&admission.Webhook{Handler: admit}, admission.StandaloneOptions{Logger: log, MetricsPath: mutatePath})
}

// run serves until ctx is done, and then for the duration drain, until all nodes have removed
// this replica from the Service.
func (w *webhook) run(ctx context.Context, drain time.Duration) error {
	serving, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	stop := context.AfterFunc(ctx, func() {
		w.draining.Store(true)
		w.log.Info("webhook drains", zap.Duration("for", drain))
		select {
		case <-time.After(drain):
		case <-serving.Done():
		}
		end()
	})
	defer stop()
	defer w.health.serve(w.healthHandler(), end).Close()
	if w.metricsPort != nil {
		defer w.metricsPort.serve(metricsHandler(crmetrics.Registry), end).Close()
	}
	return w.manager.Start(serving)
}
