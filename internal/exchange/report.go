package exchange

import (
	"time"

	"go.uber.org/zap"
)

// repeatInterval is how often a failure that repeats itself is logged again at
// warning level. In between it is a debug line.
const repeatInterval = 10 * time.Minute

// report is the log line about the end of a flight, made under Service.mu and
// written after it.
type report struct {
	held   *holding // nil: the exchange failed
	failed *failure // nil: it succeeded
	past   *failure // the failures in a row before it; nil: none

	// quiet says that the line is a repetition, or one of too many.
	quiet bool
}

// reportOf decides how loud a failure is. Service.mu is held.
func (s *Service) reportOf(now, past *failure, at time.Time) report {
	repeated := past != nil && past.err.Kind == now.err.Kind && past.err.Code == now.err.Code &&
		past.err.Detail == now.err.Detail && at.Sub(past.reported) < repeatInterval
	if repeated {
		now.reported = past.reported
		return report{failed: now, past: past, quiet: true}
	}
	if !s.lines.AllowN(at, 1) {
		return report{failed: now, past: past, quiet: true}
	}
	now.reported = at
	return report{failed: now, past: past}
}

func (r report) log(log *zap.Logger, k key, took time.Duration) {
	if r == (report{}) {
		return
	}
	fields := []zap.Field{
		zap.String("client_id", bounded(k.clientID)),
		zap.String("resource", bounded(k.resource)),
		zap.Duration("duration", took),
	}
	if r.failed != nil {
		r.logFailure(log, fields)
		return
	}
	fields = append(fields,
		zap.String("expires_on", r.held.token.ExpiresOn.UTC().Format(time.RFC3339)),
		zap.String("refresh_on", r.held.due.wall.UTC().Format(time.RFC3339)))
	if r.past != nil {
		log.Info("token exchange works again", append(fields, zap.Int("failures", r.past.streak))...)
		return
	}
	log.Debug("exchanged the federated token", fields...)
}

func (r report) logFailure(log *zap.Logger, fields []zap.Field) {
	fields = append(fields,
		zap.Int("failures", r.failed.streak),
		zap.String("next_try", r.failed.until.UTC().Format(time.RFC3339)))
	fields = append(fields, r.failed.err.fields()...)
	if r.quiet {
		log.Debug("token exchange failed again", fields...)
		return
	}
	log.Warn("token exchange failed", fields...)
}

// fields are what the log says of a failure, and callers are not told.
func (e *Error) fields() []zap.Field {
	fields := []zap.Field{
		zap.String("error", e.Detail),
		zap.Stringer("kind", e.Kind),
	}
	if e.Code != 0 {
		fields = append(fields, zap.Int("aadsts", e.Code))
	}
	if e.TraceID != "" || e.CorrelationID != "" {
		fields = append(fields, zap.String("trace_id", e.TraceID), zap.String("correlation_id", e.CorrelationID))
	}
	if e.federated.raw != nil {
		fields = append(fields, zap.Object("federated_token", e.federated))
	}
	if e.Hint != "" {
		fields = append(fields, zap.String("hint", e.Hint))
	}
	return fields
}
