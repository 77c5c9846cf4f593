// Package health answers /readyz and /livez as Kubernetes' own components do: ok,
// or 503 with what failed; with ?verbose one line for each check.
//
// It knows nothing of what is checked. What a check says is shown to whoever can
// reach the endpoint, which may be the whole cluster: it must hold no secret.
package health

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Check is one thing that has to be in order.
type Check struct {
	// Name is how it is listed: lower case, with dashes.
	Name string
	// Run says what is wrong, in one line. Nil: it is in order as long as
	// somebody answers at all.
	Run func() error
}

// maxReason bounds what is shown of a check's error.
const maxReason = 256

// Handler answers for the checks together. The name is that of the endpoint,
// such as readyz. All checks run for each request: kubelets ask every few seconds.
func Handler(name string, checks []Check) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		list, reasons := run(checks)
		status, text := http.StatusOK, "ok"
		verdict := "passed"
		if len(reasons) > 0 {
			status, text = http.StatusServiceUnavailable, strings.Join(reasons, "; ")
			verdict = "failed"
		}
		if verbose(r.URL.RawQuery) {
			text = fmt.Sprintf("%s%s check %s\n", list, name, verdict)
		}
		header := w.Header()
		header.Set("Content-Type", "text/plain; charset=utf-8")
		header.Set("Cache-Control", "no-store")
		header.Set("Content-Length", strconv.Itoa(len(text)))
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text)) // a client that has left wants no answer
	})
}

// verbose looks for the parameter without keeping the others, of which there may be many.
func verbose(query string) bool {
	for pair := range strings.SplitSeq(query, "&") {
		if name, _, _ := strings.Cut(pair, "="); name == "verbose" {
			return true
		}
	}
	return false
}

// run returns a line for each check, and what is wrong with those that failed.
func run(checks []Check) (list string, reasons []string) {
	var lines strings.Builder
	for _, c := range checks {
		var err error
		if c.Run != nil {
			err = c.Run()
		}
		if err == nil {
			fmt.Fprintf(&lines, "[+]%s ok\n", c.Name)
			continue
		}
		reason := oneLine(err.Error())
		fmt.Fprintf(&lines, "[-]%s failed: %s\n", c.Name, reason)
		reasons = append(reasons, c.Name+": "+reason)
	}
	return lines.String(), reasons
}

// oneLine keeps a reason from looking like the line of another check.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxReason {
		s = s[:maxReason] + "…"
	}
	return s
}
