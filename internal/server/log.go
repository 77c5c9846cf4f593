package server

import (
	"bytes"

	"go.uber.org/zap"
)

// errorLog takes the lines of net/http. Most are about connections that end early (Java
// and .NET probe by connecting and closing), and are for debugging. Panics and failures to
// accept are not.
type errorLog struct{ log *zap.Logger }

// Write logs one line.
func (l errorLog) Write(line []byte) (int, error) {
	level, message := zap.DebugLevel, "http server"
	switch {
	case bytes.HasPrefix(line, []byte("http: panic serving")):
		level, message = zap.ErrorLevel, "panic while serving a request"
	case bytes.HasPrefix(line, []byte("http: Accept error")):
		level, message = zap.WarnLevel, "cannot accept connections"
	}
	l.log.Log(level, message, zap.ByteString("error", bytes.TrimSpace(line)))
	return len(line), nil
}
