package report

import (
	"context"
	"encoding/json"
	"io"
	"net/url"
	"strings"
	"time"

	"imds-oidc-proxy/internal/inject"
)

// What is read of a log.
const (
	logLines = "2000"
	logBytes = 1 << 20
)

// line is what the report needs of a line of the proxy's log.
type line struct {
	Time   time.Time `json:"time"`
	Msg    string    `json:"msg"`
	Error  string    `json:"error"`
	Client string    `json:"client_id"`
	For    string    `json:"resource"`
}

// readFaults returns the newest errors of a sidecar's log, if its counters have any. The same request that
// has succeeded since is no fault. Without the right to read logs there are none.
func (r *run) readFaults(ctx context.Context, a *answer) []Fault {
	if !a.counters.wrong() {
		return nil
	}
	body, err := r.client.Get(ctx, "/api/v1/namespaces/"+a.pod.namespace+"/pods/"+a.pod.name+"/log", url.Values{"container": {inject.ProxyName}, "tailLines": {logLines}})
	if err != nil {
		return nil
	}
	defer body.Close()
	text, _ := io.ReadAll(io.LimitReader(body, logBytes))
	return faultsOf(a.pod.name, string(text))
}

// maxFaults bounds the errors of one pod that are shown.
const maxFaults = 5

// faultsOf returns the newest error for each identity and resource, with the newest last.
func faultsOf(pod, text string) []Fault {
	var faults []Fault
	seen := map[string]int{} // index in faults, plus one
	for written := range strings.Lines(text) {
		var l line
		if json.Unmarshal([]byte(written), &l) != nil {
			continue
		}
		key := l.Client + " " + l.For
		switch l.Msg {
		case "successfully acquired token":
			if i := seen[key]; i > 0 {
				faults[i-1].Text, seen[key] = "", 0
			}
		case "request failed", "refused request":
			if l.Client == "" { // one refusal does not answer another
				key = l.Error
			}
			if i := seen[key]; i > 0 {
				faults[i-1].Text = ""
			}
			faults = append(faults, Fault{Pod: pod, Time: l.Time.UTC().Truncate(time.Second), Text: clean(l.Error)})
			seen[key] = len(faults)
		}
	}
	var left []Fault
	for _, f := range faults {
		if f.Text != "" {
			left = append(left, f)
		}
	}
	return left[max(0, len(left)-maxFaults):]
}
