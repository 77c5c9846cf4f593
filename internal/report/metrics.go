package report

import (
	"regexp"
	"strconv"
	"strings"
)

// counters are the metrics of a proxy that the report uses.
type counters struct {
	refused   map[string]int64 // requests, by reason
	failed    map[string]int64 // exchanges, by code
	forwarded int64            // requests for instance metadata
	version   string
}

// sample matches a metric with one label or two, and its value.
var sample = regexp.MustCompile(`^imds_oidc_proxy_([a-z_]+)\{([a-z_]+)="([^"]*)"[^}]*\} ([0-9.e+]+)$`)

// readCounters reads the text format of Prometheus, as the proxy writes it.
func readCounters(text string) counters {
	c := counters{refused: map[string]int64{}, failed: map[string]int64{}}
	for line := range strings.Lines(text) {
		m := sample.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		number, err := strconv.ParseFloat(m[4], 64)
		if err != nil || number == 0 {
			continue
		}
		switch value := clean(m[3]); m[1] + " " + m[2] {
		case "refused_requests_total reason":
			c.refused[value] += int64(number)
		case "exchange_errors_total code":
			c.failed[value] += int64(number)
		case "forwarded_requests_total result":
			if value == "success" {
				c.forwarded += int64(number)
			}
		case "build_info version":
			c.version = value
		}
	}
	return c
}

// ordinary are the reasons of refusals that no client notices, or that are part of its search for IMDS.
var ordinary = map[string]bool{"no_metadata_header": true, "not_found": true, "forwarding_off": true}

// wrong reports whether requests have failed for a reason that a log line explains.
func (c counters) wrong() bool {
	for reason := range c.refused {
		if !ordinary[reason] {
			return true
		}
	}
	return len(c.failed) > 0
}
