package metrics

import (
	"maps"
	"slices"
	"time"
)

// appendTo appends all metrics to b.
func (m *Metrics) appendTo(b []byte) []byte {
	for _, c := range []*counter{m.tokenRequests, m.refused, m.limited, m.forwarded, m.exchangeErrors, m.refreshes, m.learned} {
		b = c.appendTo(b)
	}
	name := prefix + "request_duration_seconds"
	b = appendHead(b, name, "Time from the end of a request's header to the answer, by handler.", "histogram")
	for _, handler := range slices.Sorted(maps.Keys(m.requests)) {
		if handler == other && m.requests[other].empty() {
			continue // it would add 16 series that are always zero
		}
		b = m.requests[handler].appendTo(b, name, "handler", handler)
	}
	name = prefix + "exchange_duration_seconds"
	b = appendHead(b, name, "Duration of attempts to exchange a token with Entra, including failed ones.", "histogram")
	b = m.exchanges.appendTo(b, name, "", "")

	b = appendHead(b, prefix+"build_info", "1, with the versions of the proxy and of Go as labels.", "gauge")
	b = appendCount(b, prefix+"build_info", []string{"version", "goversion"}, []string{m.cfg.Version, m.cfg.GoVersion}, 1)
	if m.cfg.Sample == nil {
		return b
	}
	return m.cfg.Sample().appendTo(b, m.cfg.Now())
}

func (s Sample) appendTo(b []byte, now time.Time) []byte {
	b = appendGauge(b, "cache_entries", "Tokens in the cache.", float64(s.CacheEntries))
	if !s.SoonestTokenExpiry.IsZero() {
		b = appendGauge(b, "soonest_token_expiry_seconds", "Time until the first token in the cache expires.",
			s.SoonestTokenExpiry.Sub(now).Seconds())
	}
	if !s.FederatedTokenIssued.IsZero() {
		b = appendGauge(b, "federated_token_age_seconds", "Time since the federated token was issued.",
			now.Sub(s.FederatedTokenIssued).Seconds())
	}
	if !s.FederatedTokenExpiry.IsZero() {
		b = appendGauge(b, "federated_token_expiry_seconds", "Time until the federated token expires; negative if it has expired.",
			s.FederatedTokenExpiry.Sub(now).Seconds())
	}
	lines := prefix + "log_lines_left_out_total"
	b = appendHead(b, lines, "Dropped log lines: above the rate limit of lines about requests, or not written in time.", "counter")
	b = appendCount(b, lines, nil, nil, s.LogLinesLeftOut)
	return appendCallers(b, s.Callers)
}

func appendCallers(b []byte, callers []Caller) []byte {
	name := prefix + "callers"
	b = appendHead(b, name, "1 for each kind of client that asked for a token since the start.", "gauge")
	for _, c := range callers {
		given := []string{c.SDK, c.Version, c.WorkloadIdentity}
		b = appendCount(b, name, []string{"sdk", "version", "workload_identity"}, given, 1)
	}
	return b
}

func appendGauge(b []byte, name, help string, value float64) []byte {
	b = appendHead(b, prefix+name, help, "gauge")
	b = append(b, prefix+name+" "...)
	b = append(b, formatFloat(value)...)
	return append(b, '\n')
}
