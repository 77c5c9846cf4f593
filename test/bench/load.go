package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// loadSpec describes a run of load: Requests requests over Connections keep-alive connections. Each
// connection cycles through the targets.
type loadSpec struct {
	Address     string
	Targets     []string
	Connections int
	Requests    int
}

// loadResult is the result of a run. In JSON, durations are in nanoseconds.
type loadResult struct {
	Requests int
	Elapsed  time.Duration
	P50, P99 time.Duration
}

// perSecond returns the answers per second.
func (r loadResult) perSecond() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// requestTimeout ends a run if the server hangs.
const requestTimeout = 30 * time.Second

// runLoad runs the load in its own process, so that its garbage collector and scheduler do not
// affect the server.
func runLoad(spec loadSpec) (loadResult, error) {
	input, err := json.Marshal(spec)
	if err != nil {
		return loadResult{}, err
	}
	cmd := exec.Command("/proc/self/exe", "load")
	cmd.Stdin = strings.NewReader(string(input))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return loadResult{}, fmt.Errorf("load: %w", err)
	}
	var result loadResult
	return result, json.Unmarshal(out, &result)
}

// loadMain is the main function of the process that runLoad starts.
func loadMain(stdin io.Reader, stdout io.Writer) error {
	var spec loadSpec
	if err := json.NewDecoder(stdin).Decode(&spec); err != nil {
		return err
	}
	result, err := spec.run()
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(result)
}

func (s loadSpec) run() (loadResult, error) {
	requests := make([][]byte, len(s.Targets))
	for i, target := range s.Targets {
		requests[i] = fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n", target)
	}
	each := s.Requests / s.Connections
	latencies := make([][]time.Duration, s.Connections)
	failures := make([]error, s.Connections)
	var group sync.WaitGroup
	began := time.Now()
	for i := range s.Connections {
		group.Go(func() { latencies[i], failures[i] = ask(s.Address, requests, i, each) })
	}
	group.Wait()
	elapsed := time.Since(began)
	if err := errors.Join(failures...); err != nil {
		return loadResult{}, err
	}
	all := slices.Concat(latencies...)
	slices.Sort(all)
	return loadResult{Requests: len(all), Elapsed: elapsed, P50: all[len(all)/2], P99: all[len(all)*99/100]}, nil
}

// ask sends requests one after the other over one connection. Connections start at different
// targets, so that all targets are requested at any time.
func ask(address string, requests [][]byte, first, count int) ([]time.Duration, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	latencies := make([]time.Duration, count)
	for i := range latencies {
		began := time.Now()
		if err := conn.SetDeadline(began.Add(requestTimeout)); err != nil {
			return nil, err
		}
		if _, err := conn.Write(requests[(first+i)%len(requests)]); err != nil {
			return nil, err
		}
		if err := readAnswer(reader); err != nil {
			return nil, err
		}
		latencies[i] = time.Since(began)
	}
	return latencies, nil
}

// readAnswer reads one answer with little CPU time, because this process shares the cores with the
// server that it measures.
func readAnswer(reader *bufio.Reader) error {
	status, err := reader.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(status), "HTTP/1.1 200") {
		return fmt.Errorf("answered %q", status)
	}
	length := -1
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
		if value, ok := strings.CutPrefix(string(line), "Content-Length: "); ok {
			if length, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New("an answer without Content-Length")
	}
	_, err = reader.Discard(length)
	return err
}
