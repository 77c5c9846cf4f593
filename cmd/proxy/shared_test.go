package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
)

// blockedWriter is a ResponseWriter whose client does not read until read is closed.
type blockedWriter struct {
	*httptest.ResponseRecorder
	read chan struct{}
}

func (w *blockedWriter) Write(p []byte) (int, error) {
	<-w.read
	return w.ResponseRecorder.Write(p)
}

// TestSharedAnswers: at most maxCopies answers are in memory, however many clients do not read.
// Each client gets a complete answer, and a new one if fewer copies are in memory.
func TestSharedAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		made := 0
		h := &shared{inner: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			made++
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(http.StatusAccepted)
			fmt.Fprint(w, "answer ", made)
		})}
		for i := range 3 * maxCopies {
			if got, want := ask(h, "GET", "/metrics").Body.String(), fmt.Sprint("answer ", i+1); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		made = 0
		read := make(chan struct{})
		answers := make([]*httptest.ResponseRecorder, 3*maxCopies)
		for i := range answers {
			answers[i] = httptest.NewRecorder()
			go h.ServeHTTP(&blockedWriter{answers[i], read}, httptest.NewRequest("GET", "/metrics", nil))
			synctest.Wait()
		}
		if made != maxCopies {
			t.Errorf("clients that do not read: got %d answers made, want %d", made, maxCopies)
		}
		close(read)
		synctest.Wait()
		for i, w := range answers {
			want := fmt.Sprint("answer ", min(i+1, maxCopies))
			if w.Code != http.StatusAccepted || w.Body.String() != want || w.Header().Get("Content-Type") != "text/plain" {
				t.Errorf("client %d got %d %q %v, want %q", i, w.Code, w.Body, w.Header(), want)
			}
		}
		if got := ask(h, "GET", "/metrics").Body.String(); got != fmt.Sprint("answer ", maxCopies+1) {
			t.Errorf("got %q, want a new answer", got)
		}
	})
}

// TestConcurrentRequestsShareAnswer: requests that arrive while an answer is being made wait for
// that answer, so that it is made once for all of them.
func TestConcurrentRequestsShareAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		made, done := 0, make(chan struct{})
		h := &shared{inner: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			made++
			<-done
			fmt.Fprint(w, "whole")
		})}
		answers := make([]*httptest.ResponseRecorder, 30)
		for i := range answers {
			answers[i] = httptest.NewRecorder()
			go h.ServeHTTP(answers[i], httptest.NewRequest("GET", "/metrics", nil))
		}
		synctest.Wait()
		close(done)
		synctest.Wait()
		for _, w := range answers {
			if w.Body.String() != "whole" {
				t.Errorf("got %q, want the complete answer", w.Body)
			}
		}
		if made != 1 {
			t.Errorf("got %d answers made, want 1", made)
		}
	})
}
