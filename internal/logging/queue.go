package logging

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxQueued bounds what waits to be written. It holds some seven hundred lines, which
	// is a crowd of clients at once; beyond it, lines are left out.
	maxQueued = 256 << 10

	// keptQueue is the memory that a queue keeps when it is empty: most writes are
	// of a line or a few.
	keptQueue = 16 << 10

	// closeTime is how long the end of a program waits for the writing of its last
	// lines: a slow disk has its time, and a pipe that nobody reads holds nothing up.
	closeTime = 2 * time.Second
)

// errNotWritten is what a Queue is closed with whose writer stands still.
var errNotWritten = errors.New("the last lines of the log could not be written in time")

// Queue writes to another writer from a goroutine of its own, so that nobody who
// logs waits for a disk or a pipe, one that stands still neither. A line is written
// at once; those that come meanwhile are written together afterwards. Lines keep their
// order. Those that there is no room for are left out and counted, and where they would
// be stands a line that says how many (see [New]).
//
// What is queued when the process is killed is lost: the lines of as long as one
// write takes. [Queue.Close] loses none that can be written in its time.
type Queue struct {
	out     io.Writer
	done    chan struct{} // closed when the goroutine has ended
	leftOut atomic.Uint64

	mu        sync.Mutex // guards what follows; not held over a write until the Queue is closed
	changed   sync.Cond
	queued    []byte
	tell      func(lines uint64) []byte // makes a line about those left out; nil: there is none
	told      uint64                    // how many lines tell has told of
	writing   bool
	closed    bool
	abandoned bool  // closed, with a write that does not end
	err       error // the first that a write had, until it is reported
}

// NewQueue returns a Queue that writes to out, until it is closed.
func NewQueue(out io.Writer) *Queue {
	q := &Queue{out: out, done: make(chan struct{})}
	q.changed.L = &q.mu
	go q.run()
	return q
}

// LeftOut is how many lines there was no room for.
func (q *Queue) LeftOut() uint64 { return q.leftOut.Load() }

// Write queues a copy of p, one line, or leaves it out. Its error is that of an earlier
// write. On a closed Queue it writes directly: what is said at the very end matters
// too.
func (q *Queue) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return q.writeLast(p)
	}
	if len(q.queued) > 0 && len(q.queued)+len(p) > maxQueued {
		return q.leave(p)
	}
	if len(q.queued) == 0 {
		q.changed.Broadcast()
	}
	q.queued = append(q.queued, p...)
	return len(p), q.takeError()
}

// leave counts a line that is not written. It is no error to who logs, who can do
// nothing about it. The mutex is held.
func (q *Queue) leave(p []byte) (int, error) {
	q.leftOut.Add(1)
	return len(p), nil
}

// writeLast writes after what is queued. The mutex is held.
func (q *Queue) writeLast(p []byte) (int, error) {
	for (q.writing || len(q.queued) > 0) && !q.abandoned {
		q.changed.Wait()
	}
	if q.abandoned {
		return q.leave(p)
	}
	return q.out.Write(p)
}

// tellBy has lines made about those that are left out.
func (q *Queue) tellBy(tell func(lines uint64) []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.tell = tell
}

// tellOfGap queues a line about those left out since the last such line. The mutex is
// held.
func (q *Queue) tellOfGap() {
	left := q.leftOut.Load()
	if q.tell != nil && left > q.told {
		q.queued = append(q.queued, q.tell(left-q.told)...)
		q.told = left
	}
}

// takeError returns what went wrong since it was last asked. The mutex is held.
func (q *Queue) takeError() error {
	err := q.err
	q.err = nil
	return err
}

// Sync waits until everything queued is written.
func (q *Queue) Sync() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.writing || len(q.queued) > 0 {
		q.changed.Wait()
	}
	return q.takeError()
}

// Close writes what is queued, and ends the goroutine. Where that takes too long, it
// says so, and the goroutine ends with its write.
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

// run writes what is queued, all of it at a time, until the queue is closed and
// empty.
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
		batch, q.queued = q.queued, batch[:0]
		q.tellOfGap() // which comes after what is written now
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
