package entra_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/test/kit/entra"
)

func project(t *testing.T, idp *entra.Server, cfg entra.ProjectedTokenConfig) *entra.ProjectedToken {
	t.Helper()
	cfg.Dir, cfg.Subject = t.TempDir(), testSubject
	token, err := idp.ProjectToken(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestProjectedTokenLayout(t *testing.T) {
	idp := start(t, entra.Config{})
	idp.AddApplication(testApplication())
	token := project(t, idp, entra.ProjectedTokenConfig{})
	dir := filepath.Dir(token.Path())

	if got, err := os.Readlink(token.Path()); err != nil || got != "..data/azure-identity-token" {
		t.Errorf("the token is a link to %q (%v)", got, err)
	}
	version := func() string {
		t.Helper()
		link, err := os.Readlink(filepath.Join(dir, "..data"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := time.Parse("..2006_01_02_15_04_05", link[:strings.LastIndex(link, ".")]); err != nil {
			t.Errorf("..data is a link to %q: %v", link, err)
		}
		return link
	}
	first, firstToken := version(), token.Token()
	if err := token.Renew(); err != nil {
		t.Fatal(err)
	}
	if version() == first || token.Token() == firstToken {
		t.Error("Renew changed nothing")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 3 {
		t.Errorf("the volume contains %v, want the version, ..data and the token", entries)
	}

	content, err := os.ReadFile(token.Path())
	if err != nil || string(content) != token.Token() {
		t.Errorf("the file does not contain the token: %v", err)
	}
	form := goodForm(idp)
	form.Set("client_assertion", string(content))
	if got := post(t, idp.Client(), idp.TokenURL(), form); got.status != 200 {
		t.Errorf("the token is refused: %d %s", got.status, got.Description)
	}
}

func TestProjectedTokenModeAndOwner(t *testing.T) {
	idp := withoutListener(t, entra.Config{})
	owner := &entra.Owner{UID: os.Getuid(), GID: os.Getgid()} // the only owner that an ordinary user may set
	if os.Getuid() == 0 {
		owner = &entra.Owner{UID: 1501, GID: 1501}
	}
	for want, cfg := range map[fs.FileMode]entra.ProjectedTokenConfig{
		0o644: {},
		0o640: {Mode: 0o640, Owner: owner},
		0o600: {Mode: 0o600},
	} {
		token := project(t, idp, cfg)
		info, err := os.Stat(token.Path())
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("mode: got %o, want %o", got, want)
		}
		if stat := info.Sys().(*syscall.Stat_t); cfg.Owner != nil && (int(stat.Uid) != owner.UID || int(stat.Gid) != owner.GID) {
			t.Errorf("owner: got %d:%d, want %d:%d", stat.Uid, stat.Gid, owner.UID, owner.GID)
		}
		version, err := os.Stat(filepath.Join(filepath.Dir(token.Path()), "..data"))
		if err != nil {
			t.Fatal(err)
		}
		if got := version.Mode().Perm(); got != 0o755 {
			t.Errorf("mode of the version's directory: got %o, want 755", got)
		}
	}
}

func TestReadersNeverSeeAPartialToken(t *testing.T) {
	const swaps, readers = 100, 2
	idp := withoutListener(t, entra.Config{})
	token := project(t, idp, entra.ProjectedTokenConfig{})
	// Long contents, so that the test would notice a write in place.
	whole := [2]string{strings.Repeat("a", 1<<16), strings.Repeat("b", 1<<16)}
	if err := token.Write(whole[1]); err != nil {
		t.Fatal(err)
	}

	done := make(chan struct{})
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				content, err := os.ReadFile(token.Path())
				if errors.Is(err, fs.ErrNotExist) {
					// The version was removed after ..data was resolved and before
					// the file was opened. This happens with the kubelet too.
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if c := string(content); c != whole[0] && c != whole[1] {
					t.Errorf("read %d bytes that are not a complete token", len(c))
					return
				}
			}
		})
	}
	for i := range swaps {
		if err := token.Write(whole[i%2]); err != nil {
			t.Error(err)
			break
		}
	}
	close(done)
	wg.Wait()
}

func TestProjectedTokenIsRenewedAsTheKubeletDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		idp := withoutListener(t, entra.Config{})
		token := project(t, idp, entra.ProjectedTokenConfig{Lifetime: time.Hour})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- token.Run(ctx) }()

		first := token.Token()
		time.Sleep(48*time.Minute - time.Nanosecond)
		synctest.Wait()
		if token.Token() != first {
			t.Error("renewed before 80 % of its lifetime")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		second := token.Token()
		if second == first {
			t.Error("not renewed after 80 % of its lifetime")
		}
		if got, want := time.Until(token.Expiry()), time.Hour; got != want {
			t.Errorf("the lifetime of the new token is %s, want %s", got, want)
		}
		time.Sleep(48 * time.Minute)
		synctest.Wait()
		if token.Token() == second {
			t.Error("not renewed a second time")
		}
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestProjectedTokenRequiresItsVolume(t *testing.T) {
	idp := withoutListener(t, entra.Config{})
	_, err := idp.ProjectToken(entra.ProjectedTokenConfig{Dir: filepath.Join(t.TempDir(), "missing"), Subject: testSubject})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
}
