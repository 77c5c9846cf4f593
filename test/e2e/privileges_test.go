package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestPrivileges: tools/privileges, which `make test` runs first, fails if a privilege is
// missing and names it on one line.
func TestPrivileges(t *testing.T) {
	script, err := os.ReadFile("../../tools/privileges")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		command []string
		want    string // empty: nothing is missing
	}{
		{"root", nil, ""},
		{"a plain user", []string{"setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"}, "run as root"},
		{"no CAP_SYS_ADMIN", []string{"setpriv", "--bounding-set=-sys_admin"}, "CAP_SYS_ADMIN to make a network namespace"},
		{"no CAP_NET_ADMIN", []string{"setpriv", "--bounding-set=-net_admin"}, "CAP_NET_ADMIN to set up a network namespace"},
		{"in a chroot", []string{"unshare", "--mount", "sh", "-c", `mount --rbind / "$0" && exec chroot "$0" "$1"`, t.TempDir()}, "user namespaces (the kernel refuses them in a chroot"},
		{"no cgroups", []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /sys/fs/cgroup && exec "$0"`}, "memory cgroups (/sys/fs/cgroup/memory is not there"},
		// Each user namespace has its own value of this setting, so the machine's does not change.
		{"user namespaces are off", []string{"unshare", "--map-root-user", "sh", "-c", `echo 0 >/proc/sys/user/max_user_namespaces && exec "$0"`}, "user namespaces"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append(tt.command, "sh")
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Stdin = bytes.NewReader(script) // a plain user may not be allowed to read the repository
			out, err := cmd.CombinedOutput()
			got := string(out)
			if tt.want == "" {
				if err != nil || got != "" {
					t.Errorf("%v, %q", err, got)
				}
				return
			}
			if err == nil || !strings.Contains(got, tt.want) || strings.Count(got, "\n") != 1 {
				t.Errorf("%v, %q; want a failure, and one line with %q", err, got, tt.want)
			}
		})
	}
}
