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
// Values are validated when they are set, so that the code that parses a flag or its
// environment variable can name it in the error. The callers decide what is logged and
// how often, and are responsible for not logging secrets.
package logging

import (
	"bytes"
	"errors"
	"io"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Config holds the level and the format of the log. The zero value is info and json.
type Config struct {
	Level  Level
	Format Format
}

// AddFlags defines --log-level and --log-format.
func (c *Config) AddFlags(flags *pflag.FlagSet) {
	flags.Var(&c.Level, "log-level", "`level`: error, warn, info, debug, trace or all")
	flags.Var(&c.Format, "log-format", "`format`: json or console")
}

// Level is the lowest level that is logged. The zero value is info. It is a pflag.Value.
type Level struct{ level zapcore.Level }

// Set accepts the levels that azure-workload-identity's webhook passes to its proxy, and
// an empty name, which means info. The levels trace and all mean debug, because this
// module logs nothing below debug.
func (l *Level) Set(name string) error {
	switch name {
	case "", "info":
		l.level = zapcore.InfoLevel
	case "debug", "trace", "all":
		l.level = zapcore.DebugLevel
	case "warn", "warning":
		l.level = zapcore.WarnLevel
	case "error":
		l.level = zapcore.ErrorLevel
	default:
		return errors.New("must be error, warn, info, debug, trace or all")
	}
	return nil
}

// String returns the level's name as log lines have it.
func (l *Level) String() string { return l.level.String() }

// Type returns the name of the type for pflag.
func (*Level) Type() string { return "level" }

// Format is the format of a log line. The zero value is json. It is a pflag.Value.
type Format struct{ console bool }

// The names of the formats.
const (
	formatJSON    = "json"
	formatConsole = "console"
)

// Set accepts json and console.
func (f *Format) Set(name string) error {
	if name != formatJSON && name != formatConsole {
		return errors.New("must be json or console")
	}
	f.console = name == formatConsole
	return nil
}

// String returns the format's name.
func (f *Format) String() string {
	if f.console {
		return formatConsole
	}
	return formatJSON
}

// Type returns the name of the type for pflag.
func (*Format) Type() string { return "format" }

// New returns a logger that writes one line for each entry to w. Lines of concurrent
// requests never mix. Times are in RFC 3339 with nanoseconds, durations in Go's format.
// If w is a [Queue], it also writes a line in this format about lines that it drops.
func New(w io.Writer, cfg Config) *zap.Logger {
	encoding := zap.NewProductionEncoderConfig()
	encoding.TimeKey = "time"
	encoding.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoding.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(encoding)
	if cfg.Format.console {
		encoder = zapcore.NewConsoleEncoder(encoding)
	}
	if q, ok := w.(*Queue); ok && cfg.Level.level.Enabled(droppedLevel) {
		q.setReport(func(lines uint64) []byte { return dropped(encoder, lines) })
	}
	// zap's own errors go to w too. By default zap would write them to standard error and
	// wait for it.
	errorOutput := zapcore.Lock(zapcore.AddSync(struct{ io.Writer }{w}))
	return zap.New(zapcore.NewCore(encoder, locked(w), cfg.Level.level), zap.ErrorOutput(errorOutput))
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
