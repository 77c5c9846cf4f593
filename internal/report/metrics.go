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
		n := int64(min(number, maxCount))
		switch value := clean(m[3], maxWord); m[1] + " " + m[2] {
		case "refused_requests_total reason":
			count(c.refused, value, n)
		case "exchange_errors_total code":
			count(c.failed, value, n)
		case "forwarded_requests_total result":
			if value == "success" {
				c.forwarded = min(c.forwarded+n, maxCount)
			}
		case "build_info version":
			c.version = value
		}
	}
	return c
}

// count adds a number. Reasons beyond maxReasons are counted as other.
func count(numbers map[string]int64, reason string, n int64) {
	if _, known := numbers[reason]; !known && len(numbers) >= maxReasons {
		reason = "other"
	}
	numbers[reason] = min(numbers[reason]+n, maxCount)
}

// ordinary are the reasons of refusals that no client notices, or that are part of its search for IMDS.
var ordinary = map[string]bool{"no_metadata_header": true, "not_found": true, "forwarding_off": true, "identity_path": true}

// wrong reports whether requests have failed for a reason that a log line explains.
func (c counters) wrong() bool {
	for reason := range c.refused {
		if !ordinary[reason] {
			return true
		}
	}
	return len(c.failed) > 0
}
