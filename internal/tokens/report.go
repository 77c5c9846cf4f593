package tokens

import (
	"time"

	"go.uber.org/zap"
)

const (
	// repeatInterval is how often a repeated failure is logged at warning level. In
	// between it is logged at debug level.
	repeatInterval = 10 * time.Minute

	// maxLogged bounds the bytes of a resource in a log line.
	maxLogged = 256
)

// report is the log line about the end of a run. It is made while Service.mu is held, and
// written afterwards.
type report struct {
	expiresOn, refreshOn time.Time // of the new token

	failed *failure // nil: the run succeeded
	past   *failure // the failures in a row before it; nil: none

	// debug says that the line is a repetition, or over the limit on warnings, and is
	// logged at debug level.
	debug bool
}

// reportOf decides at which level a failure is logged.
func (m *memory) reportOf(now, past *failure, at time.Time) *report {
	repeated := past != nil && past.err.Kind == now.err.Kind && past.err.Code == now.err.Code &&
		past.err.Detail == now.err.Detail && at.Sub(past.reported) < repeatInterval
	switch {
	case repeated:
		now.reported = past.reported
	case m.warnings.AllowN(at, 1):
		now.reported = at
		return &report{failed: now, past: past}
	}
	return &report{failed: now, past: past, debug: true}
}

func (r *report) log(log *zap.Logger, k key, took time.Duration) {
	fields := []zap.Field{
		zap.String("client_id", string(k.clientID)),
		zap.String("resource", string(k.resource[:min(len(k.resource), maxLogged)])),
		zap.Duration("duration", took),
	}
	if r.failed != nil {
		r.logFailure(log, fields)
		return
	}
	fields = append(fields,
		zap.String("expires_on", r.expiresOn.UTC().Format(time.RFC3339)),
		zap.String("refresh_on", r.refreshOn.UTC().Format(time.RFC3339)))
	if r.past != nil {
		log.Info("token exchange works again", append(fields, zap.Int("failures", r.past.streak))...)
		return
	}
	log.Debug("exchanged the federated token", fields...)
}

func (r *report) logFailure(log *zap.Logger, fields []zap.Field) {
	fields = append(fields,
		zap.Int("failures", r.failed.streak),
		zap.String("next_try", r.failed.until.UTC().Format(time.RFC3339)),
		zap.Inline(r.failed.err))
	if r.debug {
		log.Debug("token exchange failed again", fields...)
		return
	}
	log.Warn("token exchange failed", fields...)
}
