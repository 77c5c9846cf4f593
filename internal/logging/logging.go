// Package logging is how every command here takes its two logging flags, and
// makes a logger of them.
//
//	var cfg logging.Config
//	cfg.AddFlags(flags)             // --log-level, --log-format
//	…                               // flags.Parse, the environment
//	log := logging.New(stderr, cfg)
//
// A program that logs for each request gives New a [Queue], so that no request waits
// for the writing, even of a log that nobody reads.
//
// The values are checked as they are set, so that what parses the flags, or a
// variable that stands for one, names it in its error. What is logged, how often,
// and that nothing secret is among it, is the business of who logs.
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

// Config is what to log, and in which form. The zero value is info and json.
type Config struct {
	Level  Level
	Format Format
}

// AddFlags defines --log-level and --log-format.
func (c *Config) AddFlags(flags *pflag.FlagSet) {
	flags.Var(&c.Level, "log-level", "`level`: error, warn, info, debug, trace or all")
	flags.Var(&c.Format, "log-format", "`format`: json or console")
}

// Level is the least grave level that is logged. The zero value is info. It is a
// pflag.Value.
type Level struct{ level zapcore.Level }

// Set takes the levels that azure-workload-identity's webhook passes to its proxy,
// and nothing, which means info. Its trace and all have nothing below debug to
// mean here.
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

// String is the level's name in the log's lines.
func (l *Level) String() string { return l.level.String() }

// Type is what pflag calls the kind of value.
func (*Level) Type() string { return "level" }

// Format is the form of a line. The zero value is json. It is a pflag.Value.
type Format struct{ console bool }

// The names of the formats.
const (
	formatJSON    = "json"
	formatConsole = "console"
)

// Set takes json and console.
func (f *Format) Set(name string) error {
	if name != formatJSON && name != formatConsole {
		return errors.New("must be json or console")
	}
	f.console = name == formatConsole
	return nil
}

// String is the format's name.
func (f *Format) String() string {
	if f.console {
		return formatConsole
	}
	return formatJSON
}

// Type is what pflag calls the kind of value.
func (*Format) Type() string { return "format" }

// New returns a logger that writes to w, one entry a line; entries of concurrent
// requests never mix. Times are RFC 3339 with nanoseconds, durations as Go prints
// them. A [Queue] writes lines of that form about those that it leaves out.
func New(w io.Writer, cfg Config) *zap.Logger {
	encoding := zap.NewProductionEncoderConfig()
	encoding.TimeKey = "time"
	encoding.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoding.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(encoding)
	if cfg.Format.console {
		encoder = zapcore.NewConsoleEncoder(encoding)
	}
	if q, ok := w.(*Queue); ok && cfg.Level.level.Enabled(gapLevel) {
		q.tellBy(func(lines uint64) []byte { return gapLine(encoder, lines) })
	}
	// zap's own complaints go the same way: it would write them to standard error, and
	// wait for it.
	complaints := zapcore.Lock(zapcore.AddSync(struct{ io.Writer }{w}))
	return zap.New(zapcore.NewCore(encoder, locked(w), cfg.Level.level), zap.ErrorOutput(complaints))
}

// locked lets one line at a time through, as a Queue does by itself.
func locked(w io.Writer) zapcore.WriteSyncer {
	if q, ok := w.(*Queue); ok {
		return q
	}
	return zapcore.Lock(zapcore.AddSync(w))
}

// gapLevel is that of the line about lines left out.
const gapLevel = zapcore.WarnLevel

func gapLine(encoder zapcore.Encoder, lines uint64) []byte {
	entry := zapcore.Entry{Level: gapLevel, Time: time.Now(), Message: "left out lines that were not written in time"}
	line, err := encoder.EncodeEntry(entry, []zapcore.Field{zap.Uint64("lines", lines)})
	if err != nil { // no field of it can fail
		return nil
	}
	defer line.Free()
	return bytes.Clone(line.Bytes())
}
