package cniinstall

import (
	"context"
	"errors"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

const (
	// compareInterval is how often the files are compared although no change was noticed. The
	// kernel drops notifications if there are too many, and a node may allow no more watches.
	compareInterval = 30 * time.Second

	// comparePause is the pause after a comparison. It bounds the work if another program
	// writes to the directories in a loop.
	comparePause = 100 * time.Millisecond

	// More than maxRepairs repairs within fightTime mean that another program, which does not
	// keep the entry, writes the list again and again. Azure CNI does so at its start, and some
	// times a month.
	maxRepairs = 10
	fightTime  = 10 * time.Minute
)

// ErrFight means that another program removes the plugin each time.
var ErrFight = errors.New("gave up: another program removes the plugin from this node again and again")

// Run installs the plugin and keeps it installed until ctx is done. It returns [ErrFight] if
// another program removes the plugin too often, and leaves the files as they are. The plugin
// also stays installed when ctx is done: the next version takes over.
func (i *Installer) Run(ctx context.Context) error {
	w := newWatcher(i.Log, i.BinDir, i.ConfDir)
	defer w.close()
	return i.run(ctx, w.changes, w.follow)
}

// run compares at once, after each change and at intervals. It calls follow before each
// comparison.
func (i *Installer) run(ctx context.Context, changes <-chan struct{}, follow func()) error {
	removeTemporary(i.BinDir, i.ConfDir)
	tick := time.NewTicker(i.interval)
	defer tick.Stop()
	for {
		follow() // before the comparison, so that a change after it is noticed
		made, err := i.compare()
		if err := i.record(made, err, time.Now()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(comparePause):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-changes:
		}
	}
}

// watcher notices changes in directories.
type watcher struct {
	log     *zap.Logger
	dirs    []string
	notify  *fsnotify.Watcher // nil: the kernel allows no more
	failed  bool              // logged
	changes chan struct{}     // has an element after a change
}

func newWatcher(log *zap.Logger, dirs ...string) *watcher {
	w := &watcher{log: log, dirs: dirs, changes: make(chan struct{}, 1)}
	var err error
	if w.notify, err = fsnotify.NewWatcher(); err != nil {
		w.notify = nil
		w.warn(err)
		return w
	}
	go w.run(w.notify)
	return w
}

func (w *watcher) warn(err error) {
	if !w.failed {
		w.log.Warn("cannot watch the directories: comparing at intervals only", zap.Duration("interval", compareInterval), zap.Error(err))
	}
	w.failed = true
}

// run forwards the notifications, several as one, until the watcher is closed.
func (w *watcher) run(notify *fsnotify.Watcher) {
	for {
		select {
		case _, ok := <-notify.Events:
			if !ok {
				return
			}
		case _, ok := <-notify.Errors: // such as an overflow: something changed
			if !ok {
				return
			}
		}
		select {
		case w.changes <- struct{}{}:
		default:
		}
	}
}

// follow watches the directories, also those that were made or replaced since the last call.
func (w *watcher) follow() {
	if w.notify == nil {
		return
	}
	for _, dir := range w.dirs {
		if err := w.notify.Add(dir); err != nil {
			w.warn(err)
			return
		}
	}
	w.failed = false
}

func (w *watcher) close() {
	if w.notify != nil {
		w.notify.Close()
	}
}
