package report

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"imds-oidc-proxy/internal/census"
	"imds-oidc-proxy/internal/inject"
)

// What is read of a log: the last lines of a proxy that runs, and the beginning of one that has ended, in
// which each kind of client is named once.
const (
	logLines = "2000"
	logBytes = 2 << 20
)

// The messages of the proxy's log that the report uses.
const (
	logStart     = "starting the proxy server"
	logCaller    = "new caller"
	logAcquired  = "successfully acquired token"
	logRecovered = "token exchange works again"
	logExchange  = "token exchange failed"
	logFailed    = "request failed"
	logRefused   = "refused request"
)

// line is what the report needs of a line of the proxy's log.
type line struct {
	Time     time.Time `json:"time"`
	Msg      string    `json:"msg"`
	Error    string    `json:"error"`
	Hint     string    `json:"hint"`
	AADSTS   int       `json:"aadsts"`
	Client   string    `json:"client_id"`
	For      string    `json:"resource"`
	Identity string    `json:"identity"`
	Version  string    `json:"version"`

	census.Caller
}

func (r *run) readLog(ctx context.Context, p *pod, query url.Values) (string, error) {
	query.Set("container", inject.ProxyName)
	return r.get(ctx, "/api/v1/namespaces/"+p.namespace+"/pods/"+p.name+"/log", query, logBytes)
}

// readFaults reads the newest errors of a sidecar's log, if its counters have any.
func (r *run) readFaults(ctx context.Context, a *answer) {
	if !a.counters.wrong() {
		return
	}
	text, err := r.readLog(ctx, a.pod, url.Values{"tailLines": {logLines}})
	switch {
	case err == nil:
		a.faults = faultsOf(a.pod.name, text)
	case apierrors.IsForbidden(err):
		a.noLog = "you may not get pods/log"
	default:
		a.noLog = clean(err.Error(), maxText)
	}
}

// byLog reads which clients a sidecar had that has ended. The log is not complete without its first line.
func (r *run) byLog(ctx context.Context, a *answer) error {
	text, err := r.readLog(ctx, a.pod, url.Values{})
	if err != nil {
		return err
	}
	begun := false
	for l := range logOf(text) {
		switch l.Msg {
		case logStart:
			begun, a.counters.version = true, clean(l.Version, maxWord)
		case logCaller:
			if len(a.clients) >= maxClients {
				return fmt.Errorf("%w: it has more than %d kinds of clients", errAnswer, maxClients)
			}
			e := census.Entry{Caller: l.Caller, FirstSeen: l.Time, LastSeen: a.pod.ended}
			e.Version = l.Version
			bound(&e)
			a.clients = append(a.clients, e)
		}
	}
	if !begun {
		return fmt.Errorf("%w: its log has no line %q, which has level info", errAnswer, logStart)
	}
	if a.faults = faultsOf(a.pod.name, text); len(text) == logBytes {
		return fmt.Errorf("%w: its log has more than %d MiB", errAnswer, logBytes>>20)
	}
	return nil
}

// logOf returns the lines of a log that are JSON.
func logOf(text string) func(func(line) bool) {
	return func(yield func(line) bool) {
		for written := range strings.Lines(text) {
			var l line
			if strings.HasPrefix(written, "{") && json.Unmarshal([]byte(written), &l) == nil && !yield(l) {
				return
			}
		}
	}
}

// maxFaults bounds the errors that are shown of one pod, and of one workload.
const maxFaults = 5

// faultsOf returns the newest error for each identity and resource, with the newest last. If the same
// request has succeeded since, there is none.
func faultsOf(pod, text string) []Fault {
	faults := map[string]Fault{}
	for l := range logOf(text) {
		key := l.Client + " " + l.For
		switch l.Msg {
		case logAcquired, logRecovered:
			delete(faults, key)
		case logExchange, logFailed, logRefused:
			if l.Client == "" { // one refusal does not answer another
				key = l.Identity + " " + l.Error
			}
			f := Fault{
				Pod: pod, Time: l.Time.UTC().Truncate(time.Second), ClientID: clean(l.Client, maxWord), Resource: clean(l.For, maxName),
				Identity: clean(l.Identity, maxText), AADSTS: l.AADSTS, Text: clean(l.Error, maxText), Remedy: clean(l.Hint, maxText),
			}
			if before := faults[key]; l.Msg == logFailed && before.Remedy != "" { // of the exchange that failed for it
				f.Text, f.Remedy, f.AADSTS = before.Text, before.Remedy, before.AADSTS
			}
			faults[key] = f
		}
	}
	var all []Fault
	for _, f := range faults {
		all = append(all, f)
	}
	return newest(all)
}

// newest returns the newest errors, with the newest last.
func newest(faults []Fault) []Fault {
	slices.SortFunc(faults, compareFaults)
	return faults[max(0, len(faults)-maxFaults):]
}
