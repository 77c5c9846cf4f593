package logging

import (
	"io"
	"sync"
)

const (
	// maxQueued bounds what waits to be written. It holds the lines of some hundred
	// requests for each of a thousand clients; beyond it, who logs waits, as it would
	// for the writer itself.
	maxQueued = 256 << 10

	// keptQueue is the memory that a queue keeps when it is empty: most writes are
	// of a line or a few.
	keptQueue = 16 << 10
)

// Queue writes to another writer from a goroutine of its own, so that nobody who
// logs waits for a disk or a pipe. A line is written at once; those that come
// meanwhile are written together afterwards. Lines keep their order.
//
// What is queued when the process is killed is lost: the lines of as long as one
// write takes. [Queue.Close] loses none.
type Queue struct {
	out  io.Writer
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex // guards what follows; never held over a write
	changed sync.Cond
	queued  []byte
	writing bool
	closed  bool
	err     error // the first that a write had, until it is reported
}

// NewQueue returns a Queue that writes to out, until it is closed.
func NewQueue(out io.Writer) *Queue {
	q := &Queue{out: out, done: make(chan struct{})}
	q.changed.L = &q.mu
	go q.run()
	return q
}

// Write queues a copy of p, and waits while there is no room for it. Its error is
// that of an earlier write. On a closed Queue it writes directly: what is said at
// the very end matters too.
func (q *Queue) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.queued) > 0 && len(q.queued)+len(p) > maxQueued && !q.closed {
		q.changed.Wait()
	}
	if q.closed {
		for q.writing || len(q.queued) > 0 {
			q.changed.Wait()
		}
		return q.out.Write(p)
	}
	if len(q.queued) == 0 {
		q.changed.Broadcast()
	}
	q.queued = append(q.queued, p...)
	return len(p), q.takeError()
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

// Close writes what is queued, and ends the goroutine.
func (q *Queue) Close() error {
	q.mu.Lock()
	q.closed = true
	q.changed.Broadcast()
	q.mu.Unlock()
	<-q.done
	return q.Sync()
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
