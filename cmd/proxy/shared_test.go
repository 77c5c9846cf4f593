package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
)

// heldAnswer is an answer whose client reads nothing until read is closed.
type heldAnswer struct {
	*httptest.ResponseRecorder
	read chan struct{}
}

func (w *heldAnswer) Write(p []byte) (int, error) {
	<-w.read
	return w.ResponseRecorder.Write(p)
}

// TestSharedAnswers: a few answers are in memory at a time, however many clients do not
// read; each client gets a whole one, and it is new where nobody holds the others.
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
			go h.ServeHTTP(&heldAnswer{answers[i], read}, httptest.NewRequest("GET", "/metrics", nil))
			synctest.Wait()
		}
		if made != maxCopies {
			t.Errorf("%d answers were made for clients that do not read, want %d", made, maxCopies)
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

// TestSharedAnswerInTheMaking: an answer that takes long is made once for all that wait.
func TestSharedAnswerInTheMaking(t *testing.T) {
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
				t.Errorf("got %q, want the whole answer", w.Body)
			}
		}
		if made != 1 {
			t.Errorf("the answer was made %d times, want once", made)
		}
	})
}
