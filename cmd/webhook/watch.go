package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path"
	"sync"
	"time"

	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// maxBroken is how long the service accounts in memory may go without a watch, or without
	// the permission to list them. A watch ends every few minutes, and when an API server is
	// restarted, and then begins again within seconds.
	maxBroken = time.Minute

	// listInterval is the interval between lists of one service account. A watch whose
	// permission was withdrawn goes on for up to ten minutes; the list shows it at once.
	listInterval = 10 * time.Second
	listTimeout  = 5 * time.Second
)

// accountWatch observes whether the service accounts in memory follow the API server. Otherwise the
// webhook would inject the client ID of an account that was deleted or changed.
type accountWatch struct {
	list    func(context.Context) error // lists service accounts
	now     func() time.Time
	metrics *metrics
	log     *zap.Logger

	mu       sync.Mutex
	open     int       // watches that are being read
	ended    time.Time // when the last watch ended; at first, the start
	watchErr string    // why the last watch failed; empty: it ended normally
	listed   time.Time // when list succeeded; at first, the start
	listErr  error
	broken   bool // as logged last
}

func newAccountWatch(now func() time.Time, metrics *metrics, log *zap.Logger) *accountWatch {
	w := &accountWatch{now: now, metrics: metrics, log: log, ended: now(), listed: now()}
	metrics.current.Set(1)
	return w
}

// current returns an error if the service accounts have not been watched or listed for longer than
// maxBroken.
func (w *accountWatch) current() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if since := w.now().Sub(w.ended); w.open == 0 && since > maxBroken {
		return fmt.Errorf("service accounts have not been watched for %s: %s", since.Round(time.Second), w.watchErr)
	}
	if since := w.now().Sub(w.listed); since > maxBroken {
		return fmt.Errorf("service accounts could not be listed for %s: %w", since.Round(time.Second), w.listErr)
	}
	return nil
}

// Start lists the service accounts at an interval, and reports changes, until ctx is done.
func (w *accountWatch) Start(ctx context.Context) error {
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

func (w *accountWatch) check(ctx context.Context) {
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
func (w *accountWatch) report(err error) {
	broken := err != nil
	w.metrics.current.Set(map[bool]float64{false: 1}[broken])
	switch {
	case broken && !w.broken:
		w.log.Error("service accounts are outdated: not ready until they are read again", zap.Error(err))
	case !broken && w.broken:
		w.log.Info("service accounts are up to date again")
	}
	w.broken = broken
}

// wrap returns a transport that observes the watches of service accounts.
func (w *accountWatch) wrap(next http.RoundTripper) http.RoundTripper {
	return observed{next, w}
}

type observed struct {
	next  http.RoundTripper
	watch *accountWatch
}

// RoundTrip implements [http.RoundTripper].
func (o observed) RoundTrip(r *http.Request) (*http.Response, error) {
	watching := path.Base(r.URL.Path) == "serviceaccounts" && r.URL.Query().Get("watch") == "true"
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

func (w *accountWatch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open++
	w.watchErr = ""
}

func (w *accountWatch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open--
	w.ended = w.now()
	w.watchErr = "the watch ended"
}

func (w *accountWatch) failed(response *http.Response, err error) {
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

// listOne returns a function that lists one service account.
func listOne(reader client.Reader) func(context.Context) error {
	return func(ctx context.Context) error {
		var list metav1.PartialObjectMetadataList
		list.SetGroupVersionKind(accountMetadata().GroupVersionKind())
		return reader.List(ctx, &list, client.Limit(1))
	}
}
