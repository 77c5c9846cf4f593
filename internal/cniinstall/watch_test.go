package cniinstall

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// start runs the installer without notifications in the bubble of the test, and returns the
// channel with its error.
func (n *node) start(ctx context.Context) (changes chan struct{}, ended chan error) {
	changes, ended = make(chan struct{}, 1), make(chan error, 1)
	go func() { ended <- n.run(ctx, changes, func() {}) }()
	return changes, ended
}

// TestCompareInterval: a change without a notification is repaired at the next interval.
func TestCompareInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, map[string]string{"10.conflist": lists["azure"]})
		n.write(n.conf(".imds-cni-123.tmp"), "left over")
		ctx, cancel := context.WithCancel(t.Context())
		_, ended := n.start(ctx)
		synctest.Wait()
		if !n.hasEntry("10.conflist") || n.Ready() != nil {
			t.Fatalf("not installed at once: %v", n.Ready())
		}
		n.checkNoTemporary()
		n.write(n.conf("10.conflist"), lists["azure"])
		time.Sleep(compareInterval - comparePause)
		synctest.Wait()
		if n.hasEntry("10.conflist") {
			t.Error("repaired before the interval")
		}
		time.Sleep(2 * comparePause)
		synctest.Wait()
		if !n.hasEntry("10.conflist") {
			t.Error("not repaired after the interval")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("got %v at the end", err)
		}
		if !n.hasEntry("10.conflist") || n.read(n.binary()) != "the program" {
			t.Error("the end of the installer removed the plugin")
		}
	})
}

// TestComparePause: many notifications lead to one comparison a pause.
func TestComparePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, map[string]string{"10.conflist": lists["azure"]})
		ctx, cancel := context.WithCancel(t.Context())
		compared := 0
		changes, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- n.run(ctx, changes, func() { compared++ }) }()
		for start := time.Now(); time.Since(start) < time.Second; {
			select {
			case changes <- struct{}{}:
			case <-time.After(time.Millisecond):
			}
		}
		cancel()
		<-ended
		if most := int(time.Second/comparePause) + 1; compared < 2 || compared > most {
			t.Errorf("compared %d times, want 2 to %d", compared, most)
		}
	})
}

// TestFightWithAzureCNS: a program that rewrites the list whenever it has the entry wins after
// maxRepairs repairs. The installer says so and changes nothing any more.
func TestFightWithAzureCNS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, map[string]string{"15-azure-swift-overlay.conflist": lists["swift"]})
		path := n.conf("15-azure-swift-overlay.conflist")
		changes, ended := n.start(t.Context())
		rewritten := 0
		for {
			time.Sleep(comparePause)
			synctest.Wait()
			if strings.Contains(n.read(path), entry) {
				n.write(path, lists["swift"])
				rewritten++
			}
			select {
			case changes <- struct{}{}:
				continue
			case err := <-ended:
				if !errors.Is(err, ErrFight) {
					t.Errorf("got %v, want ErrFight", err)
				}
			}
			break
		}
		if got := n.logged("another program removed or changed the plugin: it is in place again"); got != maxRepairs+1 || rewritten != maxRepairs+2 {
			t.Errorf("logged %d repairs of %d rewritings, want %d", got, rewritten, maxRepairs+1)
		}
		n.write(path, lists["swift"])
		time.Sleep(10 * compareInterval)
		if n.hasEntry("15-azure-swift-overlay.conflist") {
			t.Error("it still repairs")
		}
	})
}

// TestRewrittenOnceAMonth: rewritings at the rate of AKS never count as a fight.
func TestRewrittenOnceAMonth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, map[string]string{"10.conflist": lists["azure"]})
		ctx, cancel := context.WithCancel(t.Context())
		changes, ended := n.start(ctx)
		for range 3 * maxRepairs {
			time.Sleep(fightTime)
			n.write(n.conf("10.conflist"), lists["azure"])
			select {
			case changes <- struct{}{}:
			default:
			}
		}
		time.Sleep(compareInterval + comparePause)
		synctest.Wait()
		if !n.hasEntry("10.conflist") {
			t.Error("not repaired")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// waitFor waits for a condition in real time.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); {
		if time.Now().After(deadline) {
			t.Fatalf("timeout: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestNotifications: with the kernel's notifications, each change is repaired without waiting for
// the next interval: the list written in place, replaced by a rename, preceded by another one, and
// the plugin's file removed.
func TestNotifications(t *testing.T) {
	n := newNode(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	n.interval = time.Hour // only notifications cause comparisons
	go func() { ended <- n.Run(ctx) }()
	waitFor(t, "the first comparison", func() bool { return !errors.Is(n.Ready(), errNotCompared) })

	n.write(n.conf("10.conflist"), lists["azure"])
	waitFor(t, "the first list", func() bool { return n.hasEntry("10.conflist") && n.Ready() == nil })
	n.write(n.conf("10.conflist"), lists["swift"])
	waitFor(t, "written in place", func() bool { return n.hasEntry("10.conflist") })
	n.write(n.conf("new"), lists["azure"])
	if err := os.Rename(n.conf("new"), n.conf("10.conflist")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "renamed", func() bool { return n.hasEntry("10.conflist") })
	n.write(n.conf("05.conflist"), lists["cilium"])
	waitFor(t, "preceded", func() bool { return n.hasEntry("05.conflist") && !n.hasEntry("10.conflist") })
	if err := os.Remove(n.binary()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the plugin's file removed", func() bool { _, err := os.Stat(n.binary()); return err == nil })
	if err := os.Remove(n.conf("05.conflist")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the list removed", func() bool { return n.hasEntry("10.conflist") })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	n.checkNoTemporary()
}

// TestUnwatchable: without the kernel's notifications, the files are compared at intervals, and
// the log says so once.
func TestUnwatchable(t *testing.T) {
	n := newNode(t, nil)
	w := newWatcher(n.Log, n.BinDir, n.ConfDir+"/missing")
	defer w.close()
	w.follow()
	w.follow()
	if got := n.logged("cannot watch the directories: comparing at intervals only"); got != 1 {
		t.Errorf("logged %d lines, want 1", got)
	}
	if err := os.Mkdir(n.ConfDir+"/missing", 0o755); err != nil {
		t.Fatal(err)
	}
	w.follow()
	n.write(n.ConfDir+"/missing/10.conflist", "x")
	select {
	case <-w.changes:
	case <-time.After(20 * time.Second):
		t.Error("no notification after the directory was made")
	}
}
