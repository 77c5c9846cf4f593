package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// maxBody is the maximum size of a request in bytes. The API server accepts requests of up
	// to 3 MiB and adds the AdmissionReview.
	maxBody = 4 << 20

	// maxObjects is the maximum number of JSON objects in a request. An object of two bytes can
	// take hundreds of times its size in memory when it is decoded.
	maxObjects = 32_000

	// maxDigits is the maximum number of consecutive digits in a request. The time to decode a
	// quantity, such as a memory limit, is quadratic in its digits: a million take more than a
	// second.
	maxDigits = 64 << 10

	// partSize is the size of the parts in which a body is received. Most bodies have one part.
	partSize = 64 << 10

	// maxDiscarded is how much of a body that is too large is read before the answer.
	maxDiscarded = maxBody

	// minSize is the minimum estimate of a request's memory: its goroutine and buffers.
	minSize = 16 << 10
)

// body is the body of a request, in the parts in which it was received.
type body struct {
	parts [][]byte
	size  int64

	// The number of JSON objects, and the length of the longest number. Both are upper bounds,
	// since objects and numbers in strings count: quantities are strings too.
	objects, digits int
	run             int // the length of the number at the end
}

// readBody reads the body of a request within the limits. The body counts in the connection's
// memory with what was received of it, and not with what the client announces.
func readBody(ctx context.Context, c *peer, w http.ResponseWriter, r *http.Request) (*body, error) {
	if r.ContentLength > maxBody {
		return nil, discard(r, &http.MaxBytesError{Limit: maxBody})
	}
	var b body
	limited := http.MaxBytesReader(w, r.Body, maxBody)
	for err := error(nil); err != io.EOF; {
		part := int64(partSize)
		if r.ContentLength >= 0 {
			part = min(part, r.ContentLength-b.size+1) // one more, for the end of the body
		}
		if err := c.reserve(ctx, &c.peers.receiving, part); err != nil {
			return nil, err
		}
		if err = b.receive(limited, part); err != nil && err != io.EOF {
			return nil, discard(r, err)
		}
	}
	return &b, b.check()
}

// receive reads a part of the body. The error is io.EOF at the end of the body.
func (b *body) receive(from io.Reader, size int64) (err error) {
	part, n := make([]byte, size), 0
	for err == nil && n < len(part) {
		var read int
		read, err = from.Read(part[n:])
		n += read
	}
	b.parts = append(b.parts, part[:n])
	b.size += int64(n)
	b.measure(part[:n])
	return err
}

// discard reads the rest of a body that is too large. A connection that is closed while the client
// still sends is reset, and the client may lose the answer.
func discard(r *http.Request, err error) error {
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		_, _ = io.CopyN(io.Discard, r.Body, maxDiscarded)
	}
	return err
}

// measure adds the objects and the numbers of a part.
func (b *body) measure(part []byte) {
	for _, char := range part {
		if char == '{' {
			b.objects++
		}
		if char < '0' || char > '9' {
			b.run = 0
			continue
		}
		b.run++
		b.digits = max(b.digits, b.run)
	}
}

func (b *body) check() error {
	switch {
	case b.objects > maxObjects:
		return limitError(fmt.Sprintf("the AdmissionReview has %d objects: must be at most %d", b.objects, maxObjects))
	case b.digits > maxDigits:
		return limitError(fmt.Sprintf("the AdmissionReview has a number of %d digits: must be at most %d", b.digits, maxDigits))
	}
	return nil
}

// memory returns the estimate of the memory that the request takes when it is decoded.
func (b *body) memory() int64 { return max(minSize, b.size*bodyCopies+int64(b.objects)*objectSize) }

// reader returns the body.
func (b *body) reader() io.ReadCloser {
	parts := make([]io.Reader, len(b.parts))
	for i, part := range b.parts {
		parts[i] = bytes.NewReader(part)
	}
	return io.NopCloser(io.MultiReader(parts...))
}

// limitError is the error of a request that exceeds a limit.
type limitError string

func (e limitError) Error() string { return string(e) }

// writeError answers a request that gets no answer of the handler. This is an HTTP status and not an
// AdmissionReview, so that the API server applies failurePolicy to pods that are too large. The API
// server shows the message of a Status in its error, but no plain text.
func writeError(w http.ResponseWriter, err error) {
	code, reason, message := http.StatusBadRequest, metav1.StatusReasonBadRequest, "the request's body could not be read"
	var limit limitError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &limit):
		code, reason, message = http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge, limit.Error()
	case errors.As(err, &tooLarge):
		code, reason = http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge
		message = fmt.Sprintf("the AdmissionReview is too large: must be at most %d bytes", maxBody)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errEvicted):
		code, reason, message = http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "too many requests"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{ // an error means that the client has closed the connection
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
}
