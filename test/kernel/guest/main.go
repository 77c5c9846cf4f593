// Command guest is the first process of the virtual machine of package kernel. It runs proxy-init
// until the redirect is installed. After each failure it loads the module that the message names,
// as an administrator would do, and the modules on which that one depends.
//
// It prints a line for each run: "run: EXIT_CODE MESSAGE", and at the end "done: REASON".
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// maxRuns is more than there are modules.
const maxRuns = 20

func main() {
	fmt.Println("done:", run())
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := errors.Join(os.MkdirAll(m.dir, 0o755), unix.Mount(m.kind, m.dir, m.kind, 0, "")); err != nil {
			return err
		}
	}
	if err := addAddress(); err != nil {
		return err
	}
	depends, err := readDepends()
	if err != nil {
		return err
	}
	loaded := map[string]bool{}
	for range maxRuns {
		code, message := proxyInit()
		fmt.Println("run:", code, message)
		if code == 0 {
			return nil
		}
		name := moduleName.FindStringSubmatch(message)
		if name == nil {
			return errors.New("the message names no module")
		}
		if loaded[name[1]] {
			return fmt.Errorf("%s is loaded already", name[1])
		}
		if err := load(name[1], depends, loaded); err != nil {
			return err
		}
	}
	return errors.New("too many runs")
}

// addAddress gives the loopback device the metadata address, so that there is a route to it.
func addAddress() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	up, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up); err != nil {
		return err
	}
	address, err := unix.NewIfreq("lo:1")
	if err == nil {
		err = address.SetInet4Addr([]byte{169, 254, 169, 254})
	}
	if err != nil {
		return err
	}
	return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, address)
}

// moduleName finds the first module of nftables in a message.
var moduleName = regexp.MustCompile(`\b(nfnetlink|nf_tables|nft_[a-z0-9_]+)\b`)

// proxyInit runs proxy-init, and returns its exit code and the line that it logged.
func proxyInit() (int, string) {
	cmd := exec.Command("/proxy-init", "--backend=native", "--force", "--termination-log=")
	cmd.Env = []string{"PATH=/nonexistent"}
	output, err := cmd.CombinedOutput()
	if exit, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		return -1, err.Error()
	} else if failed {
		return exit.ExitCode(), strings.TrimSpace(string(output))
	}
	return 0, strings.TrimSpace(string(output))
}

// readDepends reads which modules each module needs first.
func readDepends() (depends map[string][]string, err error) {
	text, err := os.ReadFile("/depends.json")
	if err != nil {
		return nil, err
	}
	return depends, json.Unmarshal(text, &depends)
}

// load loads a module after those on which it depends.
func load(name string, depends map[string][]string, loaded map[string]bool) error {
	if loaded[name] {
		return nil
	}
	for _, other := range depends[name] {
		if err := load(other, depends, loaded); err != nil {
			return err
		}
	}
	file, err := os.Open("/modules/" + name + ".ko")
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no module %s", name)
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("loading %s: %w", name, err)
	}
	loaded[name] = true
	return nil
}
