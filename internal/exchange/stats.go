package exchange

import "time"

// Stats is what the cache holds now.
type Stats struct {
	// Entries counts the tokens held.
	Entries int
	// SoonestExpiry is when the first of them ends. Zero: there is none.
	SoonestExpiry time.Time
}

// Stats looks at the cache. It costs microseconds, also where the cache is full.
func (s *Service) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	stats := Stats{Entries: s.held.Len()}
	for _, h := range s.held.Values() {
		if end := h.token.ExpiresOn; stats.SoonestExpiry.IsZero() || end.Before(stats.SoonestExpiry) {
			stats.SoonestExpiry = end
		}
	}
	return stats
}
