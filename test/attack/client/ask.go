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
	// askInterval is the pause of the well-behaved client between two requests.
	askInterval = 20 * time.Millisecond

	// askTimeout bounds one attempt. The time of a failed attempt counts as waiting time.
	askTimeout = 10 * time.Second
)

// asker repeats the same request, on a new connection for each one and, at the same time, on a
// keep-alive connection, as SDKs do.
type asker struct {
	address, target string

	mu     sync.Mutex           // guards what follows
	seen   map[string]*waits    // by kind of connection
	asking map[string]time.Time // when the current request began, by kind of connection
}

// waits are the results for one kind of connection.
type waits struct {
	Answers   int
	Failures  int     // attempts that got no answer and were repeated
	Worst     float64 // longest time until an answer, in milliseconds
	LastError string
}

func newAsker(address, target string) *asker {
	return &asker{address: address, target: target, seen: map[string]*waits{}, asking: map[string]time.Time{}}
}

func (a *asker) start() {
	keepAlive := &http.Client{Timeout: askTimeout, Transport: &http.Transport{Proxy: nil}}
	for name, attempt := range map[string]func() error{
		"new":        a.onNewConnection,
		"keep-alive": func() error { return a.onKeptConnection(keepAlive) },
	} {
		a.seen[name] = &waits{}
		go func() {
			for {
				a.askUntilAnswered(name, attempt)
				time.Sleep(askInterval)
			}
		}()
	}
}

// askUntilAnswered repeats a request until it is answered, and measures the time from the first
// attempt to the answer.
func (a *asker) askUntilAnswered(name string, attempt func() error) {
	a.mu.Lock()
	a.asking[name] = time.Now()
	a.mu.Unlock()
	for {
		err := attempt()
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

// result returns the results by kind of connection. A request without an answer counts as if it
// were answered now.
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
