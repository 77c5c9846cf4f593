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

// cgroup is a memory cgroup, of either version of the kernel's interface.
type cgroup struct {
	dir                              string
	limitFile, peakFile, anonymousOf string
	socketsOf                        string // empty: the kernel does not count them here
	killsOf                          string
}

// newCgroup makes a cgroup that may use so many bytes. It is removed when the test ends,
// after the processes in it.
func newCgroup(t *testing.T, limit int) *cgroup {
	t.Helper()
	c := &cgroup{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes", "rss", "", "memory.oom_control"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		c = &cgroup{"/sys/fs/cgroup", "memory.max", "memory.peak", "anon", "sock", "memory.events"}
		// It is on already where systemd or a container runtime runs.
		_ = os.WriteFile(c.dir+"/cgroup.subtree_control", []byte("+memory"), 0)
	}
	dir, err := os.MkdirTemp(c.dir, "imds-oidc-proxy-attack-")
	if err != nil {
		t.Fatalf("these tests need a memory cgroup: %v", err)
	}
	c.dir = dir
	t.Cleanup(func() {
		// The kernel takes a moment to let go of processes that have ended.
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

// enter is a command that enters the cgroup and runs another one as a user.
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

// peak is the most that the cgroup has used, in bytes.
func (c *cgroup) peak(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(c.read(t, c.peakFile)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// field is a number of a file of lines of a name and a number; 0 if it is not there.
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

// anonymous is the present anonymous memory, in bytes.
func (c *cgroup) anonymous(t *testing.T) int { return c.field(t, "memory.stat", c.anonymousOf) }

// kills is how many processes the kernel has killed for want of memory.
func (c *cgroup) kills(t *testing.T) int { return c.field(t, c.killsOf, "oom_kill") }

// sockets is the memory of the sockets of a local port, in bytes, those of connections
// included that the proxy has closed and the kernel has not: on version 2 the cgroup counts
// it, on version 1 nobody does.
func (c *cgroup) sockets(t *testing.T, port int) int {
	t.Helper()
	if c.socketsOf != "" {
		return c.field(t, "memory.stat", c.socketsOf)
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

// socketMemory reads what ss says of one socket's memory, skmem:(r0,rb131072,t0,…): what
// is received and not read (r), queued to be sent (w), and set aside for either (f).
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

// greatest calls measure at an interval until stop is closed, and returns the most.
func greatest(interval time.Duration, stop <-chan struct{}, measure func() int) int {
	most := measure()
	for {
		select {
		case <-stop:
			return max(most, measure())
		case <-time.After(interval):
			most = max(most, measure())
		}
	}
}
