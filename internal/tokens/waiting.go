package tokens

import "imds-oidc-proxy/internal/exchange"

// waiter is a caller that waits for a run. It is closed when another takes its place.
type waiter chan struct{}

// enter returns a waiter for r, or nil if no more callers may wait. When all places are
// taken, the run with the most waiters gives one up, if it has more than r: so a crowd that
// wants one token cannot keep out the callers that want another.
func (m *memory) enter(r *run) waiter {
	if m.waiting >= m.maxWaiting && !m.displace(len(r.waiters)+1) {
		return nil
	}
	w := make(waiter)
	r.waiters[w] = struct{}{}
	m.waiting++
	return w
}

// displace removes a waiter of the run with the most, if that has more than n.
func (m *memory) displace(n int) bool {
	var crowd *run
	for _, r := range m.running {
		if len(r.waiters) > n {
			crowd, n = r, len(r.waiters)
		}
	}
	if crowd == nil {
		return false
	}
	for w := range crowd.waiters {
		m.leave(crowd, w)
		close(w)
		break
	}
	return true
}

// leave removes a waiter that may have been displaced, or whose run may have ended.
func (m *memory) leave(r *run, w waiter) {
	if _, waits := r.waiters[w]; waits {
		delete(r.waiters, w)
		m.waiting--
	}
}

func overloaded() *exchange.Error {
	e := limited(ErrOverloaded.Error())
	e.Cause = ErrOverloaded
	return e
}
