// Package health answers /readyz and /livez in the format of Kubernetes' own
// components: "ok", or status 503 with the reasons; with ?verbose, one line for each
// check.
//
// The checks come from the caller. Everybody who can connect to the endpoint can read the
// text of their errors, possibly the whole cluster. So this text must not contain a secret.
package health

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Check is one condition of health.
type Check struct {
	// Name is the name in the list: lower case, with dashes.
	Name string
	// Run returns an error of one line that says what is wrong. Nil: the check passes
	// whenever the process answers.
	Run func() error
	// Warning is true for a check that is only in the list: its failure does not count.
	Warning bool
}

// maxReason bounds the bytes of a check's error that are shown.
const maxReason = 256

// Handler returns a handler that runs all checks for each request: a kubelet asks every
// few seconds. name is the endpoint's name, such as readyz.
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
		_, _ = w.Write([]byte(text)) // an error means that the client has closed the connection
	})
}

// verbose looks for the parameter without keeping the other parameters, whose number is not limited.
func verbose(query string) bool {
	for pair := range strings.SplitSeq(query, "&") {
		if name, _, _ := strings.Cut(pair, "="); name == "verbose" {
			return true
		}
	}
	return false
}

// run runs all checks. It returns a list with one line for each check, and the reasons
// of the checks that failed.
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
		if c.Warning {
			fmt.Fprintf(&lines, "[!]%s warning: %s\n", c.Name, reason)
			continue
		}
		fmt.Fprintf(&lines, "[-]%s failed: %s\n", c.Name, reason)
		reasons = append(reasons, c.Name+": "+reason)
	}
	return lines.String(), reasons
}

// oneLine replaces control characters, so that a reason cannot look like the line of
// another check, and cuts the reason to maxReason bytes.
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
