package attack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

const mebibyte = 1 << 20

// cgroup is a memory cgroup of version 1 or 2. Besides its directory it has the names that the files
// and their fields have in that version.
type cgroup struct {
	dir                 string
	limitFile, peakFile string
	anonymousField      string // of memory.stat
	socketsField        string // of memory.stat; empty in version 1, which does not count sockets
	killsFile           string
}

// newCgroup creates a cgroup with a memory limit in bytes. It is removed when the test ends and
// its processes have exited.
func newCgroup(t *testing.T, limit int) *cgroup {
	t.Helper()
	c := &cgroup{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes", "rss", "", "memory.oom_control"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		c = &cgroup{"/sys/fs/cgroup", "memory.max", "memory.peak", "anon", "sock", "memory.events"}
		// An error is ignored: systemd or a container runtime may have enabled the controller.
		_ = os.WriteFile(c.dir+"/cgroup.subtree_control", []byte("+memory"), 0)
	}
	dir, err := os.MkdirTemp(c.dir, "imds-oidc-proxy-attack-")
	if err != nil {
		t.Fatalf("cannot create a memory cgroup, which these tests need: %v", err)
	}
	c.dir = dir
	t.Cleanup(func() {
		// The kernel removes exited processes from the cgroup with a short delay.
		waitFor(t, "the cgroup to be empty", func() bool {
			err := os.Remove(dir)
			return err == nil || errors.Is(err, fs.ErrNotExist)
		})
	})
	if err := os.WriteFile(filepath.Join(dir, c.limitFile), []byte(strconv.Itoa(limit)), 0); err != nil {
		t.Fatal(err)
	}
	return c
}

// enter returns a command that enters the cgroup and then runs another one as a user.
func (c *cgroup) enter(uid int) []string {
	return append([]string{"sh", "-c", `echo 0 >"$0/cgroup.procs" && exec "$@"`, c.dir}, asUser(uid)...)
}

func (c *cgroup) read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// peak returns the maximum memory usage of the cgroup so far, in bytes.
func (c *cgroup) peak(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(c.read(t, c.peakFile)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// field returns a number from a file whose lines have a name and a number each, or 0 if the name is
// missing.
func (c *cgroup) field(t *testing.T, file, name string) int {
	t.Helper()
	for line := range strings.Lines(c.read(t, file)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == name {
			n, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// anonymous returns the current anonymous memory, in bytes.
func (c *cgroup) anonymous(t *testing.T) int { return c.field(t, "memory.stat", c.anonymousField) }

// kills returns how many processes the kernel has killed because of the memory limit.
func (c *cgroup) kills(t *testing.T) int { return c.field(t, c.killsFile, "oom_kill") }

// sockets returns the memory of the sockets of a local port, in bytes. This includes connections
// that the proxy has closed and the kernel still keeps. A cgroup of version 2 counts this memory,
// for all its ports; in version 1 it is read with ss.
func (c *cgroup) sockets(t *testing.T, port int) int {
	t.Helper()
	if c.socketsField != "" {
		return c.field(t, "memory.stat", c.socketsField)
	}
	out, err := exec.Command("ss", "-tanmH", "sport", "=", fmt.Sprintf(":%d", port)).Output()
	if err != nil {
		t.Fatalf("ss: %v", err)
	}
	sum := 0
	for field := range strings.FieldsSeq(string(out)) {
		sum += socketMemory(field)
	}
	return sum
}

// socketMemory returns the memory of one socket from the output of ss, skmem:(r0,rb131072,t0,…): the
// sum of what is received and not read (r), queued to be sent (w), and reserved for either (f).
func socketMemory(field string) int {
	list, ok := strings.CutPrefix(field, "skmem:(")
	if !ok {
		return 0
	}
	sum := 0
	for item := range strings.SplitSeq(strings.TrimSuffix(list, ")"), ",") {
		if n, err := strconv.Atoi(item[1:]); err == nil && (item[0] == 'r' || item[0] == 'w' || item[0] == 'f') {
			sum += n
		}
	}
	return sum
}

// maximum calls measure at an interval until stop is closed, and returns the greatest value.
func maximum(interval time.Duration, stop <-chan struct{}, measure func() int) int {
	greatest := measure()
	for {
		select {
		case <-stop:
			return max(greatest, measure())
		case <-time.After(interval):
			greatest = max(greatest, measure())
		}
	}
}
