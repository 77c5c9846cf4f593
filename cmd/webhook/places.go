package main

import (
	"context"
	"errors"

	"golang.org/x/sync/semaphore"
)

// The limits on the memory of requests, in bytes. With the program itself they fit into the chart's
// memory limit of 256 MiB.
const (
	receivingBudget = 16 << 20 // requests that are being received
	workBudget      = 96 << 20 // pods that are being worked on
	waitingBudget   = 48 << 20 // pods that wait for the API server
	sendingBudget   = 16 << 20 // answers that are being sent

	// workUnit is the minimum share of one request in workBudget. It limits the number of
	// requests that are worked on at the same time to 16, which is more than the processors can
	// use: a request takes a millisecond.
	workUnit = workBudget / 16

	// answerCopies is how much more memory a request takes while it is answered: a patch has
	// several operations for a container, and is encoded twice.
	answerCopies = 3

	// objectSize is the size of the largest Go types of Kubernetes' objects, such as a container
	// and the copies while its list grows, which can be {} in JSON. bodyCopies is how often the
	// content of a body is in memory: as JSON, raw, decoded, and in the log and the answer.
	objectSize = 1 << 10
	bodyCopies = 4
)

// places limits the requests that are handled at the same time by their estimated memory. A request
// that waits for the API server does not keep its place among those that are worked on: a few
// accounts that must be read from a slow API server would stop the admission of all other pods.
type places struct {
	work, waiting *semaphore.Weighted
}

func newPlaces() *places {
	return &places{
		work:    semaphore.NewWeighted(workBudget),
		waiting: semaphore.NewWeighted(waitingBudget),
	}
}

// place is the place of one request. It is used by one goroutine.
type place struct {
	*places
	size int64 // estimated memory in bytes
	held bool  // in work
}

// enter waits for a place among the requests that are worked on.
func (p *places) enter(ctx context.Context, size int64) (*place, error) {
	entered := &place{places: p, size: size}
	return entered, entered.enter(ctx)
}

func (p *place) share() int64 { return min(max(p.size*answerCopies, workUnit), workBudget) }

func (p *place) enter(ctx context.Context) error {
	if err := p.work.Acquire(ctx, p.share()); err != nil {
		return err
	}
	p.held = true
	return nil
}

// leave releases the place. It does nothing if the place is not held.
func (p *place) leave() {
	if p.held {
		p.held = false
		p.work.Release(p.share())
	}
}

type placeKey struct{}

// with returns a context for [outside].
func (p *place) with(ctx context.Context) context.Context {
	return context.WithValue(ctx, placeKey{}, p)
}

// errWaiting is the error of a request for which there is no memory to wait. To wait with its place
// would stop other requests.
var errWaiting = errors.New("too many requests wait for the API server")

// outside calls wait without the request's place, and then waits for a place again.
func outside(ctx context.Context, wait func() error) error {
	p, ok := ctx.Value(placeKey{}).(*place)
	if !ok {
		return wait()
	}
	if !p.waiting.TryAcquire(p.size) {
		return errWaiting
	}
	defer p.waiting.Release(p.size)
	p.leave()
	err := wait()
	if entering := p.enter(ctx); entering != nil {
		return entering
	}
	return err
}
