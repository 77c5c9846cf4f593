package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"imds-oidc-proxy/internal/diagnose"
)

const (
	// saveTimeout is for a list of rules that a pod prints in milliseconds.
	saveTimeout = 5 * time.Second

	// saveLimit bounds what is read of one. A pod beside a mesh has some 10 KiB.
	saveLimit = 1 << 20

	// capNetAdmin is the bit of CAP_NET_ADMIN, from <linux/capability.h>.
	capNetAdmin = 12
)

// savePrograms print the rules of one backend each, and change nothing.
var savePrograms = [...]string{"iptables-nft-save", "iptables-legacy-save"}

// rules looks at the redirect's rules where that can be done: in a container with
// NET_ADMIN and iptables, such as one for debugging. The sidecar has neither.
func (c *checkConfig) rules() diagnose.Rules {
	found := savesIn(c.path)
	if len(found) == 0 || !mayAdministerNetwork() {
		return diagnose.Rules{}
	}
	return diagnose.Rules{List: func(ctx context.Context) []diagnose.Listing {
		var all []diagnose.Listing
		for _, program := range found {
			all = append(all, list(ctx, program))
		}
		return all
	}}
}

// savesIn finds the programs in a list of directories: one for each backend, or
// that of an image that has only one.
func savesIn(path string) []string {
	var found []string
	for _, name := range savePrograms {
		if program := lookIn(path, name); program != "" {
			found = append(found, program)
		}
	}
	if program := lookIn(path, "iptables-save"); program != "" && len(found) == 0 {
		found = append(found, program)
	}
	return found
}

// lookIn is exec.LookPath for a PATH that is given.
func lookIn(path, name string) string {
	for _, dir := range filepath.SplitList(path) {
		program, err := exec.LookPath(filepath.Join(dir, name))
		if err == nil && filepath.IsAbs(program) {
			return program
		}
	}
	return ""
}

func mayAdministerNetwork() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	return effective(string(status), capNetAdmin)
}

// effective reports whether a capability is in CapEff of /proc/PID/status.
func effective(status string, capability uint) bool {
	for line := range strings.Lines(status) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			bits, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
			return err == nil && bits&(1<<capability) != 0
		}
	}
	return false
}

func list(ctx context.Context, program string) diagnose.Listing {
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Env = []string{} // it needs none, and iptables reads some
	cmd.WaitDelay = time.Second
	stdout, stderr := &head{limit: saveLimit}, &head{limit: probeReasonLimit}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Run()
	switch {
	case err != nil && stderr.Len() > 0:
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	case err == nil && stdout.cut:
		err = errors.New("there are too many rules to read")
	}
	return diagnose.Listing{Program: strings.TrimSuffix(filepath.Base(program), "-save"), Text: stdout.String(), Err: err}
}

// head keeps the beginning of what is written.
type head struct {
	bytes.Buffer
	limit int
	cut   bool
}

func (h *head) Write(p []byte) (int, error) {
	if room := h.limit - h.Len(); len(p) > room {
		h.cut = true
		h.Buffer.Write(p[:room])
		return len(p), nil
	}
	return h.Buffer.Write(p)
}
