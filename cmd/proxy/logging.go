package main

import (
	"io"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The values of --log-format.
const (
	logFormatJSON    = "json"
	logFormatConsole = "console"
)

// parseLevel takes the levels that azure-workload-identity's webhook passes.
// Its trace and all have nothing below debug to mean here.
func parseLevel(level string) (zapcore.Level, error) {
	switch level {
	case "", "info":
		return zapcore.InfoLevel, nil
	case "debug", "trace", "all":
		return zapcore.DebugLevel, nil
	case "warn", "warning":
		return zapcore.WarnLevel, nil
	case "error":
		return zapcore.ErrorLevel, nil
	}
	return 0, configErrorf("--log-level (PROXY_LOG_LEVEL) %q: say error, warn, info, debug, trace or all", level)
}

// newLogger writes to w, one entry a line; entries of concurrent requests never
// mix.
func newLogger(w io.Writer, level, format string) (*zap.Logger, error) {
	enabled, err := parseLevel(level)
	if err != nil {
		return nil, err
	}
	encoding := zap.NewProductionEncoderConfig()
	encoding.TimeKey = "time"
	encoding.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoding.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(encoding)
	if format == logFormatConsole {
		encoder = zapcore.NewConsoleEncoder(encoding)
	}
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), enabled)
	return zap.New(core), nil
}
