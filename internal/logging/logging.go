// Package logging defines the flags --log-level and --log-format of all commands, and
// makes a logger from their values.
//
//	var cfg logging.Config
//	cfg.AddFlags(flags)             // --log-level, --log-format
//	…                               // flags.Parse, environment variables
//	log := logging.New(stderr, cfg)
//
// A program that logs for each request passes a [Queue] to New, so that no request waits
// for the log, even if nobody reads from its pipe.
//
// The callers decide what is logged and how often, and must not log secrets.
package logging

import (
	"bytes"
	"io"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
)

// Config holds the level and the format of the log.
type Config struct {
	// Level is the lowest level that is logged, by its name in levels. Empty: info.
	Level string

	// Format is json or console. Empty: json.
	Format string
}

const formatConsole = "console"

// levels lists the levels that azure-workload-identity's webhook passes to its proxy, and
// the empty name. The levels trace and all mean debug, because this module logs nothing
// below debug.
var levels = map[string]zapcore.Level{
	"error":   zapcore.ErrorLevel,
	"warn":    zapcore.WarnLevel,
	"warning": zapcore.WarnLevel,
	"info":    zapcore.InfoLevel,
	"":        zapcore.InfoLevel,
	"debug":   zapcore.DebugLevel,
	"trace":   zapcore.DebugLevel,
	"all":     zapcore.DebugLevel,
}

// AddFlags defines --log-level and --log-format.
func (c *Config) AddFlags(flags *pflag.FlagSet) {
	c.Level, c.Format = "info", "json"
	flagenv.Var(flags, &c.Level, "log-level", parseLevel, "`level`: error, warn, info, debug, trace or all")
	flagenv.Var(flags, &c.Format, "log-format", flagenv.OneOf("json", formatConsole), "`format`: json or console")
}

func parseLevel(name string) (string, error) {
	if _, known := levels[name]; !known {
		return "", azure.Invalid(name, "must be error, warn, info, debug, trace or all")
	}
	return name, nil
}

// New returns a logger that writes one line for each entry to w. Lines of concurrent
// requests never mix. Times are in RFC 3339 with nanoseconds, durations in Go's format.
// If w is a [Queue], its line about dropped lines has this format too.
func New(w io.Writer, cfg Config) *zap.Logger {
	encoding := zap.NewProductionEncoderConfig()
	encoding.TimeKey = "time"
	encoding.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoding.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(encoding)
	if cfg.Format == formatConsole {
		encoder = zapcore.NewConsoleEncoder(encoding)
	}
	level := levels[cfg.Level]
	if q, ok := w.(*Queue); ok && level.Enabled(droppedLevel) {
		q.setReport(func(lines uint64) []byte { return dropped(encoder, lines) })
	}
	// zap's own errors go to w too. By default zap would write them to standard error and
	// wait for it.
	errorOutput := zapcore.Lock(zapcore.AddSync(struct{ io.Writer }{w}))
	return zap.New(zapcore.NewCore(encoder, locked(w), level), zap.ErrorOutput(errorOutput))
}

// locked returns w with a lock around each write. A Queue has its own lock.
func locked(w io.Writer) zapcore.WriteSyncer {
	if q, ok := w.(*Queue); ok {
		return q
	}
	return zapcore.Lock(zapcore.AddSync(w))
}

// droppedLevel is the level of the line about dropped lines.
const droppedLevel = zapcore.WarnLevel

// dropped returns the log line about a number of dropped lines.
func dropped(encoder zapcore.Encoder, lines uint64) []byte {
	entry := zapcore.Entry{Level: droppedLevel, Time: time.Now(), Message: "left out lines that were not written in time"}
	line, err := encoder.EncodeEntry(entry, []zapcore.Field{zap.Uint64("lines", lines)})
	if err != nil { // cannot happen: a number can always be encoded
		return nil
	}
	defer line.Free()
	return bytes.Clone(line.Bytes())
}
