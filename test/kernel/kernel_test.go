//go:build kernel

package kernel

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// debianKernel is the directory of Debian's kernel package, unpacked.
const debianKernel = "../../.cache/debian-kernel"

// bootTimeout limits a run, which takes some seconds, and longer on a busy machine.
const bootTimeout = 5 * time.Minute

// TestMissingModules boots the kernel without any module of nftables. proxy-init names one missing
// module after the other, with exit code 6, and works when the guest has loaded what it has named.
func TestMissingModules(t *testing.T) {
	got := boot(t, initramfs(t))
	for _, line := range got {
		t.Log(line)
	}
	want := []string{"nfnetlink", "nf_tables", "nft_ct", "nft_reject_inet", "nft_chain_nat", "nft_nat", "nft_redir"}
	if len(got) != len(want)+2 {
		t.Fatalf("got %d lines, want a run for each of %q and one more", len(got), want)
	}
	for i, module := range want {
		var entry struct{ Msg, Error string }
		if err := json.Unmarshal([]byte(strings.TrimPrefix(got[i], "run: 6 ")), &entry); err != nil {
			t.Fatalf("run %d: %v: %s", i, err, got[i])
		}
		if entry.Msg != "redirect not installed" || !strings.Contains(entry.Error, ": the kernel lacks the module "+module+": ") {
			t.Errorf("run %d: %q, want the missing module %s", i, entry, module)
		}
	}
	if last := got[len(want)]; !strings.HasPrefix(last, "run: 0 ") || !strings.Contains(last, `"backend":"native"`) || !strings.Contains(last, `"proven_by":"connection"`) {
		t.Errorf("with all modules: %s", last)
	}
	if end := got[len(want)+1]; end != "done: <nil>" {
		t.Error(end)
	}
}

// initramfs writes the guest's file system: its first process, proxy-init, the modules, and which
// modules each of them needs.
func initramfs(t *testing.T) (path string) {
	t.Helper()
	dir := t.TempDir()
	var files archive
	for name, source := range map[string]string{"init": "./guest", "proxy-init": "../../cmd/proxy-init"} {
		out := filepath.Join(dir, name)
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", out, source)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		files.addFile(t, name, out)
	}
	depends := map[string][]string{}
	for _, file := range modules(t) {
		depends[strings.TrimSuffix(filepath.Base(file), ".ko")] = dependencies(t, file)
		files.addFile(t, "modules/"+filepath.Base(file), file)
	}
	// libcrc32c asks the kernel's crypto functions for this one by another name.
	depends["libcrc32c"] = append(depends["libcrc32c"], "crc32c_generic")
	text, err := json.Marshal(depends)
	if err != nil {
		t.Fatal(err)
	}
	files.add("depends.json", text)
	path = filepath.Join(dir, "initramfs")
	if err := os.WriteFile(path, files.bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// boot boots the kernel, and returns the lines of the guest. The processor is emulated (TCG): not
// every machine has KVM.
func boot(t *testing.T, initramfs string) (lines []string) {
	t.Helper()
	kernels, err := filepath.Glob(filepath.Join(debianKernel, "boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("kernels %q, %v, want one: run make test-kernel", kernels, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults", "-no-reboot",
		"-display", "none", "-serial", "stdio", "-kernel", kernels[0], "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1")
	output, err := qemu.CombinedOutput()
	scanner := bufio.NewScanner(bytes.NewReader(output))
	for scanner.Scan() {
		line := strings.TrimSpace(scanner.Text())
		if strings.HasPrefix(line, "run: ") || strings.HasPrefix(line, "done: ") {
			lines = append(lines, line)
		}
	}
	if err != nil || len(lines) == 0 {
		t.Fatalf("qemu: %v, its output:\n%s", err, output)
	}
	return lines
}

// modules returns the files of netfilter's modules, and of the libraries that they need.
func modules(t *testing.T) (files []string) {
	t.Helper()
	for _, dir := range []string{"net/netfilter", "net/ipv4/netfilter", "net/ipv6/netfilter", "lib", "crypto"} {
		found, err := filepath.Glob(filepath.Join(debianKernel, "lib/modules/*/kernel", dir, "*.ko"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range found {
			if base := filepath.Base(file); strings.HasPrefix(base, "nf") || strings.Contains(base, "crc32c") {
				files = append(files, file)
			}
		}
	}
	return files
}

// dependencies returns the modules that a module names in its section .modinfo.
func dependencies(t *testing.T, file string) []string {
	t.Helper()
	module, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer module.Close()
	info, err := module.Section(".modinfo").Data()
	if err != nil {
		t.Fatal(err)
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if list, found := strings.CutPrefix(entry, "depends="); found {
			return slices.DeleteFunc(strings.Split(list, ","), func(s string) bool { return s == "" })
		}
	}
	return nil
}

// archive is an initramfs in the format newc of cpio.
type archive struct {
	buffer bytes.Buffer
	dirs   map[string]bool
	inode  int
}

func (a *archive) addFile(t *testing.T, name, file string) {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	a.add(name, content)
}

// add adds a regular file, after its directory.
func (a *archive) add(name string, content []byte) {
	if dir := filepath.Dir(name); dir != "." && !a.dirs[dir] {
		if a.dirs == nil {
			a.dirs = map[string]bool{}
		}
		a.dirs[dir] = true
		a.entry(dir, 0o040755, nil)
	}
	a.entry(name, 0o100755, content)
}

func (a *archive) entry(name string, mode uint32, content []byte) {
	a.inode++
	fmt.Fprintf(&a.buffer, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", a.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.buffer.WriteString(name + "\x00")
	a.align()
	a.buffer.Write(content)
	a.align()
}

// align pads to a multiple of 4 bytes.
func (a *archive) align() {
	for a.buffer.Len()%4 != 0 {
		a.buffer.WriteByte(0)
	}
}

func (a *archive) bytes() []byte {
	a.entry("TRAILER!!!", 0, nil)
	return a.buffer.Bytes()
}
