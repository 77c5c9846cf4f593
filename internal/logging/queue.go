package logging

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxQueued bounds the bytes that wait to be written: about 700 lines, enough for a
	// burst of many clients. Lines beyond the bound are dropped.
	maxQueued = 256 << 10

	// keptQueue bounds the buffer that an empty queue keeps for reuse: most writes have
	// only a few lines.
	keptQueue = 16 << 10

	// closeTime bounds how long Close waits for the last lines to be written: long enough
	// for a slow disk, and a pipe that nobody reads does not block the exit of the program.
	closeTime = 2 * time.Second
)

// errNotWritten is the error of Close if the writer blocks for longer than closeTime.
var errNotWritten = errors.New("the last lines of the log could not be written in time")

// Queue writes to another writer from its own goroutine, so that a caller never waits for
// a disk or a pipe, even if it blocks. The goroutine writes a line at once. Lines that
// arrive during a write are written together after it, in their order. Lines that do not
// fit into the queue are dropped and counted, and a line in their place says how many (see
// [New]).
//
// If the process is killed, the queued lines are lost: those that arrived during one write.
// [Queue.Close] loses no line that can be written within closeTime.
type Queue struct {
	out     io.Writer
	done    chan struct{} // closed when the goroutine has returned
	leftOut atomic.Uint64 // number of dropped lines

	mu        sync.Mutex // guards the fields below; not held during a write until the Queue is closed
	changed   sync.Cond  // signals changes of queued, writing, closed and abandoned
	queued    []byte
	report    func(lines uint64) []byte // returns a line about dropped lines; nil: there is no such line
	reported  uint64                    // number of dropped lines that report was called for
	writing   bool
	closed    bool
	abandoned bool  // Close has returned although a write still blocks
	err       error // first error of a write that is not returned yet
}

// NewQueue returns a Queue that writes to out. The caller must close it.
func NewQueue(out io.Writer) *Queue {
	q := &Queue{out: out, done: make(chan struct{})}
	q.changed.L = &q.mu
	go q.run()
	return q
}

// LeftOut returns the number of dropped lines.
func (q *Queue) LeftOut() uint64 { return q.leftOut.Load() }

// Write queues a copy of p, which is one line, or drops it. It returns the error of an
// earlier write. On a closed Queue it writes directly, so that the last lines of a program
// are not lost.
func (q *Queue) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return q.writeLast(p)
	}
	if len(q.queued) > 0 && len(q.queued)+len(p) > maxQueued {
		return q.drop(p)
	}
	if len(q.queued) == 0 {
		q.changed.Broadcast()
	}
	q.queued = append(q.queued, p...)
	return len(p), q.takeError()
}

// drop counts a line that is not written. It returns no error, because the caller cannot
// do anything about it. The caller holds q.mu.
func (q *Queue) drop(p []byte) (int, error) {
	q.leftOut.Add(1)
	return len(p), nil
}

// writeLast waits until the queued lines are written, and writes p. The caller holds q.mu.
func (q *Queue) writeLast(p []byte) (int, error) {
	for (q.writing || len(q.queued) > 0) && !q.abandoned {
		q.changed.Wait()
	}
	if q.abandoned {
		return q.drop(p)
	}
	return q.out.Write(p)
}

// setReport sets the function that returns a line about dropped lines.
func (q *Queue) setReport(report func(lines uint64) []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.report = report
}

// reportDropped queues a line about the lines that were dropped since the last such line.
// The caller holds q.mu.
func (q *Queue) reportDropped() {
	dropped := q.leftOut.Load()
	if q.report != nil && dropped > q.reported {
		q.queued = append(q.queued, q.report(dropped-q.reported)...)
		q.reported = dropped
	}
}

// takeError returns the first error since the last call. The caller holds q.mu.
func (q *Queue) takeError() error {
	err := q.err
	q.err = nil
	return err
}

// Sync waits until all queued lines are written. It returns the error of an earlier write.
func (q *Queue) Sync() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.writing || len(q.queued) > 0 {
		q.changed.Wait()
	}
	return q.takeError()
}

// Close writes the queued lines and stops the goroutine. If that takes longer than
// closeTime, Close returns an error; the goroutine then returns after its current write.
func (q *Queue) Close() error {
	q.mu.Lock()
	q.closed = true
	q.changed.Broadcast()
	q.mu.Unlock()
	timer := time.NewTimer(closeTime)
	defer timer.Stop()
	select {
	case <-q.done:
		return q.Sync()
	case <-timer.C:
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.abandoned = true
	q.changed.Broadcast()
	return errNotWritten
}

// run writes all queued lines at a time, until the queue is closed and empty.
func (q *Queue) run() {
	defer close(q.done)
	var batch []byte
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for len(q.queued) == 0 && !q.closed {
			q.changed.Wait()
		}
		if len(q.queued) == 0 {
			return
		}
		// Under load, other goroutines run first and queue more lines for the same write.
		q.mu.Unlock()
		runtime.Gosched()
		q.mu.Lock()
		batch, q.queued = q.queued, batch[:0]
		q.reportDropped() // the line comes after the batch that is written now
		q.writing = true
		q.mu.Unlock()
		_, err := q.out.Write(batch)
		if cap(batch) > keptQueue {
			batch = nil
		}
		q.mu.Lock()
		q.writing = false
		if q.err == nil {
			q.err = err
		}
		q.changed.Broadcast()
	}
}
