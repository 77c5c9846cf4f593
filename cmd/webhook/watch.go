package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// maxBroken is how long the objects in memory may go without a watch, or without the
	// permission to list them. A watch ends every few minutes, and when an API server is
	// restarted, and then begins again within seconds.
	maxBroken = time.Minute

	// listInterval is the interval between lists of one object. A watch whose permission was
	// withdrawn goes on for up to ten minutes; the list shows it at once.
	listInterval = 10 * time.Second
	listTimeout  = 5 * time.Second
)

// watched are the objects that a watch is about.
type watched struct {
	resource string // in URLs
	name     string // in errors
	outdated string // the message when they are outdated
}

var (
	serviceAccounts = watched{"serviceaccounts", "service accounts",
		"service accounts are outdated: not ready until they are read again"}

	// With certRotated. The replica stays ready while its certificate is valid.
	certificateSecret = watched{"secrets", "Secrets",
		"the certificate's Secret is outdated: a renewed certificate is not used until it is read again"}
	configuration = watched{"mutatingwebhookconfigurations", "MutatingWebhookConfigurations",
		"the MutatingWebhookConfiguration is outdated: its certificate authority is not corrected until it is read again"}
)

// objectWatch observes whether the objects in memory follow the API server. Otherwise the webhook would
// inject the client ID of an account that was deleted or changed, or serve a certificate that was
// replaced.
type objectWatch struct {
	watched
	list  func(context.Context) error // lists objects
	now   func() time.Time
	gauge prometheus.Gauge
	log   *zap.Logger

	mu       sync.Mutex
	open     int       // watches that are being read
	ended    time.Time // when the last watch ended; at first, the start
	watchErr string    // why the last watch failed; empty: it ended normally
	listed   time.Time // when list succeeded; at first, the start
	listErr  error
	broken   bool // as logged last
}

func newWatch(of watched, now func() time.Time, gauge prometheus.Gauge, log *zap.Logger) *objectWatch {
	gauge.Set(1)
	return &objectWatch{watched: of, now: now, gauge: gauge, log: log, ended: now(), listed: now()}
}

// current returns an error if the objects have not been watched or listed for longer than maxBroken.
func (w *objectWatch) current() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if since := w.now().Sub(w.ended); w.open == 0 && since > maxBroken {
		return fmt.Errorf("%s have not been watched for %s: %s", w.name, since.Round(time.Second), w.watchErr)
	}
	if since := w.now().Sub(w.listed); since > maxBroken {
		return fmt.Errorf("%s could not be listed for %s: %w", w.name, since.Round(time.Second), w.listErr)
	}
	return nil
}

// Start lists objects at an interval, and reports changes, until ctx is done.
func (w *objectWatch) Start(ctx context.Context) error {
	every(ctx, listInterval, w.check)
	return nil
}

// every calls do at an interval until ctx is done. The first call is after the first interval.
func every(ctx context.Context, interval time.Duration, do func(context.Context)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do(ctx)
		}
	}
}

func (w *objectWatch) check(ctx context.Context) {
	listing, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	err := w.list(listing)
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	if w.listErr = err; err == nil {
		w.listed = w.now()
	}
	w.mu.Unlock()
	w.report(w.current())
}

// report sets the metric and logs a change.
func (w *objectWatch) report(err error) {
	broken := err != nil
	w.gauge.Set(map[bool]float64{false: 1}[broken])
	switch {
	case broken && !w.broken:
		w.log.Error(w.outdated, zap.Error(err))
	case !broken && w.broken:
		w.log.Info("up to date again", zap.String("objects", w.name))
	}
	w.broken = broken
}

// wrap returns a transport that observes the watches.
func (w *objectWatch) wrap(next http.RoundTripper) http.RoundTripper {
	return observed{next, w}
}

type observed struct {
	next  http.RoundTripper
	watch *objectWatch
}

// RoundTrip implements [http.RoundTripper].
func (o observed) RoundTrip(r *http.Request) (*http.Response, error) {
	watching := path.Base(r.URL.Path) == o.watch.resource && r.URL.Query().Get("watch") == "true"
	response, err := o.next.RoundTrip(r)
	if !watching {
		return response, err
	}
	if err != nil || response.StatusCode != http.StatusOK {
		o.watch.failed(response, err)
		return response, err
	}
	o.watch.begin()
	response.Body = &watchBody{ReadCloser: response.Body, end: sync.OnceFunc(o.watch.end)}
	return response, nil
}

func (w *objectWatch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open++
	w.watchErr = ""
}

func (w *objectWatch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open--
	w.ended = w.now()
	w.watchErr = "the watch ended"
}

func (w *objectWatch) failed(response *http.Response, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.watchErr = err.Error()
	} else {
		w.watchErr = "the API server answers " + response.Status
	}
}

// watchBody is the response of a watch, which ends when it cannot be read further.
type watchBody struct {
	io.ReadCloser
	end func()
}

func (b *watchBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.end()
	}
	return n, err
}

func (b *watchBody) Close() error {
	b.end()
	return b.ReadCloser.Close()
}

// listOne returns a function that lists the metadata of one object.
func listOne(reader client.Reader, kind schema.GroupVersionKind, which ...client.ListOption) func(context.Context) error {
	return func(ctx context.Context) error {
		var list metav1.PartialObjectMetadataList
		list.SetGroupVersionKind(kind)
		return reader.List(ctx, &list, append([]client.ListOption{client.Limit(1)}, which...)...)
	}
}

// addWatches observes the watches of all requests that access configures.
func (w *webhook) addWatches(access *rest.Config, mode string) {
	w.accounts = newWatch(serviceAccounts, time.Now, w.metrics.current, w.log)
	if mode == certRotated {
		w.cert.renewal = []*objectWatch{
			newWatch(certificateSecret, time.Now, w.metrics.watches.WithLabelValues("secret"), w.log),
			newWatch(configuration, time.Now, w.metrics.watches.WithLabelValues("configuration"), w.log),
		}
	}
	for _, watch := range w.watches() {
		access.Wrap(watch.wrap)
	}
}

// startWatches begins to list what is watched, which needs the manager.
func (w *webhook) startWatches(cfg certificateFlags) error {
	reader := w.manager.GetAPIReader()
	w.accounts.list = listOne(reader, accountMetadata().GroupVersionKind())
	if len(w.cert.renewal) > 0 {
		named := func(name string) client.ListOption { return client.MatchingFields{"metadata.name": name} }
		w.cert.renewal[0].list = listOne(reader, corev1.SchemeGroupVersion.WithKind("Secret"), client.InNamespace(cfg.namespace), named(cfg.secret))
		w.cert.renewal[1].list = listOne(reader, admissionregistrationv1.SchemeGroupVersion.WithKind("MutatingWebhookConfiguration"), named(cfg.configuration))
	}
	for _, watch := range w.watches() {
		if err := w.manager.Add(everyReplica(watch.Start)); err != nil {
			return err
		}
	}
	return nil
}

func (w *webhook) watches() []*objectWatch { return append(slices.Clone(w.cert.renewal), w.accounts) }
