package logging_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/logging"
)

// slow is a disk whose writes block until the test lets them go on.
type slow struct {
	begun chan struct{} // gets one value at the start of each write
	goOn  chan error    // gives the result of each write

	mu     sync.Mutex
	writes []string
}

func newSlow() *slow { return &slow{begun: make(chan struct{}, 100), goOn: make(chan error, 100)} }

func (s *slow) Write(p []byte) (int, error) {
	s.begun <- struct{}{}
	err := <-s.goOn
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, string(p))
	return len(p), err
}

func (s *slow) written() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.writes, "|")
}

// TestQueueWritesTogether: a line is written at once. Lines that arrive during its write
// are written together, in their order. No caller waits.
func TestQueueWritesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newSlow()
		q := logging.NewQueue(disk)
		fmt.Fprintln(q, "a")
		<-disk.begun
		fmt.Fprintln(q, "b")
		fmt.Fprintln(q, "c")
		disk.goOn <- nil
		disk.goOn <- nil
		synctest.Wait()
		if got, want := disk.written(), "a\n|b\nc\n"; got != want {
			t.Errorf("got writes %q, want %q", got, want)
		}
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestQueueIsBounded: lines beyond the bound are dropped, and no caller waits. One line in
// their place says how many were dropped.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newSlow()
		q := logging.NewQueue(disk)
		log := logging.New(q, logging.Config{})
		log.Info("first")
		<-disk.begun
		for i := range 10 {
			log.Info(fmt.Sprint(i), zap.String("long", strings.Repeat("x", 60<<10)))
		}
		if got := q.LeftOut(); got != 6 {
			t.Errorf("left out %d lines, want 6 of 10 with 60 KiB each", got)
		}
		disk.goOn <- nil
		synctest.Wait()
		log.Info("last")
		for range 3 {
			disk.goOn <- nil
		}
		if err := q.Close(); err != nil {
			t.Error(err)
		}
		var got []string
		for line := range strings.Lines(strings.ReplaceAll(disk.written(), "|", "")) {
			var entry struct {
				Msg   string
				Lines int
			}
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprint(entry.Msg, " ", entry.Lines))
		}
		want := "first 0, 0 0, 1 0, 2 0, 3 0, left out lines that were not written in time 6, last 0"
		if strings.Join(got, ", ") != want {
			t.Errorf("got %s\nwant %s", strings.Join(got, ", "), want)
		}
	})
}

// TestQueueEnds: Close returns although the writer blocks, and later writes do not wait.
func TestQueueEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newSlow()
		q := logging.NewQueue(disk)
		fmt.Fprintln(q, "a")
		<-disk.begun
		fmt.Fprintln(q, "b")
		late := make(chan struct{})
		began := time.Now()
		go func() {
			time.Sleep(time.Second) // while it is being closed
			fmt.Fprintln(q, "late")
			close(late)
		}()
		if err := q.Close(); err == nil {
			t.Error("got no error for lost lines")
		}
		<-late
		fmt.Fprintln(q, "later")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the end took %s", took)
		}
		if got := q.LeftOut(); got != 2 {
			t.Errorf("left out %d lines, want 2", got)
		}
		disk.goOn <- nil // the goroutine ends with its write
		disk.goOn <- nil
	})
}

// TestQueueReportsAtItsLevel: a log with level error has no line about dropped lines.
func TestQueueReportsAtItsLevel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, err := parse("--log-level=error")
		if err != nil {
			t.Fatal(err)
		}
		disk := newSlow()
		q := logging.NewQueue(disk)
		log := logging.New(q, cfg)
		log.Error("first")
		<-disk.begun
		for range 2 {
			log.Error("long", zap.String("x", strings.Repeat("x", 200<<10)))
		}
		for range 3 {
			disk.goOn <- nil
		}
		q.Close()
		if got := disk.written(); q.LeftOut() != 1 || strings.Contains(got, "left out") {
			t.Errorf("left out %d lines, want 1, and wrote %.300s", q.LeftOut(), got)
		}
	})
}

// TestQueueTakesLongLine: a line that is longer than the bound is written.
func TestQueueTakesLongLine(t *testing.T) {
	var out bytes.Buffer
	q := logging.NewQueue(&out)
	long := strings.Repeat("x", 1<<20)
	fmt.Fprintln(q, "a")
	q.Sync()
	fmt.Fprintln(q, long)
	q.Close()
	if out.String() != "a\n"+long+"\n" {
		t.Errorf("got %d bytes", out.Len())
	}
}

// TestQueueLosesNothing: all lines of concurrent callers are written, those of one caller
// in their order.
func TestQueueLosesNothing(t *testing.T) {
	var out bytes.Buffer
	q := logging.NewQueue(&out)
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			for j := range 500 {
				fmt.Fprintf(q, "%d %d\n", i, j)
			}
		})
	}
	group.Wait()
	q.Close()
	var next [20]int
	for line := range strings.Lines(out.String()) {
		var i, j int
		if _, err := fmt.Sscanf(line, "%d %d\n", &i, &j); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if next[i] != j {
			t.Fatalf("of %d: got line %d, want %d", i, j, next[i])
		}
		next[i]++
	}
	for i, n := range next {
		if n != 500 {
			t.Errorf("of %d: got %d lines, want 500", i, n)
		}
	}
}

// TestQueueSync: Sync waits for the queued lines and returns the error of a write.
func TestQueueSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("no space left")
		disk := newSlow()
		q := logging.NewQueue(disk)
		fmt.Fprintln(q, "a")
		<-disk.begun
		fmt.Fprintln(q, "b")
		var synced error
		over := false
		go func() { synced, over = q.Sync(), true }()
		synctest.Wait()
		if over {
			t.Error("Sync did not wait for the disk")
		}
		disk.goOn <- full
		disk.goOn <- nil
		synctest.Wait()
		if !over || !errors.Is(synced, full) {
			t.Errorf("got %v, %v, want the error of the write", over, synced)
		}
		if err := q.Sync(); err != nil {
			t.Errorf("a second Sync: got %v, want the error only once", err)
		}
		q.Close()
	})
}

// TestQueueAfterClose: a line after Close is written after the queued lines.
func TestQueueAfterClose(t *testing.T) {
	var out bytes.Buffer
	q := logging.NewQueue(&out)
	fmt.Fprintln(q, "a")
	q.Close()
	fmt.Fprintln(q, "b")
	if got := out.String(); got != "a\nb\n" {
		t.Errorf("got %q", got)
	}
}
