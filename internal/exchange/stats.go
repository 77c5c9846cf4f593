package exchange

import (
	"strconv"
	"time"
)

// Observer is who counts exchanges. Its functions must not wait; nil: not called.
type Observer struct {
	// Exchanged is told how long one try at an exchange took, and how it failed.
	// Nil: it did not.
	Exchanged func(took time.Duration, err *Error)

	// Refreshed is told how the replacement of a token that was still valid
	// ended, with all its tries. Nil: well.
	Refreshed func(err *Error)
}

func (o Observer) exchanged(took time.Duration, err *Error) {
	if o.Exchanged != nil {
		o.Exchanged(took, err)
	}
}

func (o Observer) refreshed(err *Error) {
	if o.Refreshed != nil {
		o.Refreshed(err)
	}
}

// Label names the failure in metrics: Entra's AADSTS number where this package
// knows it, other where it does not, and the kind where Entra gave none. So the
// names are a few dozen, whatever an answer holds.
func (e *Error) Label() string {
	if e.Code == 0 {
		return e.Kind.String()
	}
	if _, known := rulingOn([]int{e.Code}); !known {
		return "other"
	}
	return strconv.Itoa(e.Code)
}

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
