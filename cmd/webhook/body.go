package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	// minSize is the minimum estimate of a request's memory: its goroutine and buffers.
	minSize = 16 << 10
)

// readBody reads the body of a request within the limits. It returns the estimate of the memory
// that the request takes when it is decoded. The body's limits are checked before that.
func readBody(w http.ResponseWriter, r *http.Request) (body []byte, size int64, err error) {
	if r.ContentLength > maxBody {
		return nil, 0, &http.MaxBytesError{Limit: maxBody}
	}
	var b bytes.Buffer
	if r.ContentLength > 0 {
		b.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	if _, err := b.ReadFrom(http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		return nil, 0, err
	}
	objects, digits := measure(b.Bytes())
	switch {
	case objects > maxObjects:
		return nil, 0, limitError(fmt.Sprintf("the AdmissionReview has %d objects: must be at most %d", objects, maxObjects))
	case digits > maxDigits:
		return nil, 0, limitError(fmt.Sprintf("the AdmissionReview has a number of %d digits: must be at most %d", digits, maxDigits))
	}
	return b.Bytes(), max(minSize, int64(b.Len())*bodyCopies+int64(objects)*objectSize), nil
}

// read reads the body of a request, and then waits for a place.
func (p *places) read(ctx context.Context, w http.ResponseWriter, r *http.Request) (*place, []byte, error) {
	length := min(max(r.ContentLength, minSize), maxBody)
	if r.ContentLength < 0 {
		length = maxBody // unknown
	}
	if err := p.reading.Acquire(ctx, length); err != nil {
		return nil, nil, err
	}
	defer p.reading.Release(length)
	body, size, err := readBody(w, r)
	if err != nil {
		return nil, nil, err
	}
	entered, err := p.enter(ctx, size)
	return entered, body, err
}

// measure returns the number of JSON objects in a text, and the length of its longest number. Both
// are upper bounds, since it does not distinguish what is in strings: quantities are strings too.
func measure(text []byte) (objects, digits int) {
	run := 0
	for _, b := range text {
		if b == '{' {
			objects++
		}
		if b < '0' || b > '9' {
			run = 0
			continue
		}
		run++
		digits = max(digits, run)
	}
	return objects, digits
}

// limitError is the error of a request that exceeds a limit.
type limitError string

func (e limitError) Error() string { return string(e) }

// writeBodyError answers a request whose body was not read. This is an HTTP status and not an
// AdmissionReview, so that the API server applies failurePolicy to pods that are too large. The API
// server shows the message of a Status in its error, but no plain text.
func writeBodyError(w http.ResponseWriter, err error) {
	code, reason, message := http.StatusBadRequest, metav1.StatusReasonBadRequest, "the request's body could not be read"
	var limit limitError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &limit):
		code, reason, message = http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge, limit.Error()
	case errors.As(err, &tooLarge):
		code, reason = http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge
		message = fmt.Sprintf("the AdmissionReview is too large: must be at most %d bytes", maxBody)
	case errors.Is(err, context.DeadlineExceeded):
		code, reason, message = http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, "too many requests"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{ // an error means that the client has closed the connection
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
}
