package exchange

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// Tests cannot use a real file system that hangs, so these replace the function that reads.

func TestOneGoroutineReadsATokenFileThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		var reads atomic.Int32
		file := newTokenFile("/token")
		file.load = func(string) (FederatedToken, error) {
			reads.Add(1)
			<-stuck
			return FederatedToken{Subject: "late"}, nil
		}
		const timeout = 8 * time.Second
		e := &Exchanger{tokenFile: file}
		for range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			began := time.Now()
			_, err := e.Exchange(ctx, unknownClient, "https://vault.example.test")
			cancel()
			failed, ok := errors.AsType[*Error](err)
			if !ok || failed.Kind != FederatedTokenUnusable || !strings.Contains(failed.Detail, "in time") {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took != timeout {
				t.Errorf("after %s, want %s", took, timeout)
			}
		}
		began := time.Now()
		if err := e.Ready(); !errors.Is(err, errReadTooSlow) || time.Since(began) != readyTimeout {
			t.Errorf("Ready: %v after %s", err, time.Since(began))
		}
		began = time.Now()
		if _, err := e.FederatedToken(); !errors.Is(err, errReadTooSlow) || time.Since(began) != readyTimeout {
			t.Errorf("FederatedToken: %v after %s", err, time.Since(began))
		}
		if got := reads.Load(); got != 1 {
			t.Errorf("%d goroutines hang, want 1", got)
		}
		close(stuck)
		synctest.Wait()
		if token, err := file.read(t.Context()); err != nil || token.Subject != "late" {
			t.Errorf("when the read has ended: %v, %v", token, err)
		}
	})
}

// If reading the CA file of an identity binding hangs, each request waits for a second and uses
// the roots that were read before. Nothing else waits for the file.
func TestCAFileThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		defer close(stuck)
		before := &http.Transport{}
		b := &bindingTransport{
			caFile:  &sharedFile[[]byte]{path: "/ca.crt", load: func(string) ([]byte, error) { <-stuck; return nil, nil }},
			current: before,
		}
		began := time.Now()
		current, caFault, changed := b.transport(t.Context())
		if current != before || !changed || !strings.Contains(caFault, "/ca.crt cannot be read in time") {
			t.Errorf("got %p, %q, %t, want the previous transport, and the error", current, caFault, changed)
		}
		if took := time.Since(began); took != caFileTimeout {
			t.Errorf("after %s, want %s", took, caFileTimeout)
		}
		go b.transport(t.Context())
		synctest.Wait()
		b.CloseIdleConnections()
		if took := time.Since(began); took != caFileTimeout {
			t.Error("CloseIdleConnections waited for the file")
		}
		time.Sleep(caFileTimeout)
	})
}

// Reading a FIFO blocks until there is a writer.
func TestCertificateFilesMustBeRegular(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "ca.pem")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	link := fifo + ".link"
	if err := syscall.Symlink(fifo, link); err != nil {
		t.Fatal(err)
	}
	valid := Config{TenantID: unknownClient, FederatedTokenFile: "/token"}
	for variable, set := range map[string]func(*Config, string){
		"--ca-file": func(c *Config, path string) { c.CAFile = path },
		"AZURE_KUBERNETES_CA_FILE": func(c *Config, path string) {
			c.Binding = Binding{TokenProxy: "https://binding.example.test", CAFile: path}
		},
	} {
		for path, want := range map[string]string{fifo: "is not a regular file", link: "is not a regular file", t.TempDir(): "is a directory", fifo + "x": "does not exist"} {
			cfg := valid
			set(&cfg, path)
			_, err := New(cfg)
			if err == nil || !strings.Contains(err.Error(), variable) || !strings.Contains(err.Error(), path+" "+want) {
				t.Errorf("%s=%s: got %v, want one that says %q", variable, path, err, want)
			}
		}
	}
}
