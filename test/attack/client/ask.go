package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// askInterval is between the requests of a polite client.
	askInterval = 20 * time.Millisecond

	// askTimeout is after what time a try is given up. It counts as waited for.
	askTimeout = 10 * time.Second
)

// asker asks for the same answer again and again, on a new connection for each request
// and, beside that, on one that is kept alive as SDKs do.
type asker struct {
	address, target string

	mu     sync.Mutex // guards what follows
	seen   map[string]*waits
	asking map[string]time.Time // since when the present request waits
}

// waits is what one way of asking has seen. Durations are in milliseconds.
type waits struct {
	Answers   int
	Failures  int // tries that got no answer, and were made again
	Worst     float64
	LastError string
}

func newAsker(address, target string) *asker {
	return &asker{address: address, target: target, seen: map[string]*waits{}, asking: map[string]time.Time{}}
}

func (a *asker) start() {
	keepAlive := &http.Client{Timeout: askTimeout, Transport: &http.Transport{Proxy: nil}}
	for name, try := range map[string]func() error{
		"new":        a.onNewConnection,
		"keep-alive": func() error { return a.onKeptConnection(keepAlive) },
	} {
		a.seen[name] = &waits{}
		go func() {
			for {
				a.askUntilAnswered(name, try)
				time.Sleep(askInterval)
			}
		}()
	}
}

// askUntilAnswered measures from the first try to the answer.
func (a *asker) askUntilAnswered(name string, try func() error) {
	a.mu.Lock()
	a.asking[name] = time.Now()
	a.mu.Unlock()
	for {
		err := try()
		a.mu.Lock()
		w := a.seen[name]
		if err == nil {
			w.Answers++
			w.Worst = max(w.Worst, milliseconds(a.asking[name]))
			delete(a.asking, name)
			a.mu.Unlock()
			return
		}
		w.Failures++
		w.LastError = err.Error()
		a.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
}

func milliseconds(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

// result counts a request that still waits as one that has waited until now.
func (a *asker) result() any {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, began := range a.asking {
		a.seen[name].Worst = max(a.seen[name].Worst, milliseconds(began))
	}
	return a.seen
}

func (a *asker) onNewConnection() error {
	conn, err := net.DialTimeout("tcp", a.address, askTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(askTimeout))
	if _, err := io.WriteString(conn, request(a.target)); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	return readAll(resp)
}

func (a *asker) onKeptConnection(client *http.Client) error {
	req, err := http.NewRequest(http.MethodGet, "http://"+a.address+a.target, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Metadata", "true")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	return readAll(resp)
}

func readAll(resp *http.Response) error {
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("got %s", resp.Status)
	}
	return nil
}
