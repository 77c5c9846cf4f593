package imds

import (
	"bytes"
	"cmp"
	"log"
	"net/http"
	"time"

	"go.uber.org/zap"
)

// Limits bounds what one client can hold of the server. The zero value of each
// field stands for the default that its comment names.
type Limits struct {
	// HeaderTime is how long a connection may take to send a request's header.
	// Zero: 5 seconds.
	HeaderTime time.Duration
	// BodyTime is how long it may take to send a body, which nobody reads. Zero: 5 seconds.
	BodyTime time.Duration
	// IdleTime is how long it may stay open between requests. Zero: 2 minutes.
	IdleTime time.Duration
	// WriteTime is how long an answer may take, from the end of the header on.
	// Zero: 90 seconds.
	WriteTime time.Duration
	// HeaderBytes is the size of a request's header. Zero: 16 KiB.
	HeaderBytes int
}

const (
	// headerTime and bodyTime: a request comes over loopback in one packet.
	headerTime = 5 * time.Second
	bodyTime   = 5 * time.Second

	// idleTime is longer than clients keep idle connections (90 seconds in Go),
	// so that it is the client that closes and no request is lost to the race.
	idleTime = 2 * time.Minute

	// writeTime covers the slowest exchange, with its retries, and then the
	// writing of the answer. Clients give up sooner.
	writeTime = 90 * time.Second

	// headerBytes is four times what clients send at the most: a resource, an ARM
	// resource ID and claims of some hundred bytes.
	headerBytes = 16 << 10
)

// MaxConnections is for [LimitListener], where the process may have that many files open
// and others beside. A thousand clients of one pod can ask at the same time. A connection
// takes some 25 KiB, and 50 with a request of the largest header that waits for an
// exchange: all of them together, opened with ill will, take 50 MiB.
const MaxConnections = 1024

// NewServer returns a server for h, with every limit set. Its Serve is to be
// given a listener made by [LimitListener].
func NewServer(h http.Handler, logger *zap.Logger, limits Limits) *http.Server {
	if logger == nil {
		logger = zap.NewNop()
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler:           refuseBodies(h, cmp.Or(limits.BodyTime, bodyTime)),
		ReadHeaderTimeout: cmp.Or(limits.HeaderTime, headerTime),
		// No ReadTimeout: header and body have limits of their own, and a request that
		// waits for a slow exchange is not read any more.
		ReadTimeout:    0,
		WriteTimeout:   cmp.Or(limits.WriteTime, writeTime),
		IdleTimeout:    cmp.Or(limits.IdleTime, idleTime),
		MaxHeaderBytes: cmp.Or(limits.HeaderBytes, headerBytes),
		Protocols:      protocols,
		// OPTIONS * is answered like any other request, by the handler.
		DisableGeneralOptionsHandler: true,
		ConnState:                    trackConnState,
		ErrorLog:                     log.New(errorLog{logger}, "", 0),
	}
}

// refuseBodies ends the connection of a request that has a body, after the
// answer. No request of IMDS has one: so nobody waits for a body that does not
// come, and what follows it is never taken for another request (smuggling).
func refuseBodies(h http.Handler, patience time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
			// The deadline is for net/http, which reads a part of the body before
			// it closes, lest the client miss the answer. Where it cannot be set
			// (a test's recorder) there is no connection to hold.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(patience))
		}
		h.ServeHTTP(w, r)
	})
}

// errorLog takes the lines of net/http, which are about connections that end
// early and other things of no concern (Java and .NET probe by connecting and
// closing). All are for debugging, but panics and connections that cannot be accepted.
type errorLog struct{ log *zap.Logger }

func (l errorLog) Write(line []byte) (int, error) {
	level := zap.DebugLevel
	switch {
	case bytes.Contains(line, []byte("panic serving")):
		level = zap.ErrorLevel
	case bytes.Contains(line, []byte("Accept error")):
		level = zap.WarnLevel
	}
	l.log.Log(level, "http server", zap.ByteString("error", bytes.TrimSpace(line)))
	return len(line), nil
}
