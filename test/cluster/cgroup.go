package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// cgroupPrefix is followed by the process ID of the process outside.
	cgroupPrefix = "imds-oidc-proxy-test-"
)

// hierarchies are the cgroup file systems: one of version 2, or several of version 1.
func hierarchies() []string {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		return []string{cgroupRoot}
	}
	var all []string
	entries, _ := os.ReadDir(cgroupRoot)
	for _, e := range entries {
		if e.IsDir() {
			all = append(all, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	return all
}

// makeCgroup makes the parent cgroup of the pods' cgroups, which the kubelet makes.
func makeCgroup(name string) error {
	for _, hierarchy := range hierarchies() {
		dir := filepath.Join(hierarchy, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		// A new cpuset of cgroup version 1 allows no CPUs and no memory nodes until these
		// files are written.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			allowed, err := os.ReadFile(filepath.Join(hierarchy, file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), allowed, 0o644)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", dir, err)
			}
		}
	}
	return nil
}

// raisePriority gives the processes of the cgroup, if they compete for the processors with others, as
// large a part as the kernel allows: otherwise a measurement of the pods would depend on what else
// the machine does.
func raisePriority(name string) error {
	// The largest values in cgroup versions 1 and 2. Which of the files exists depends on the
	// version; a version 1 hierarchy has only the files of its own controllers.
	for _, hierarchy := range hierarchies() {
		for file, most := range map[string]string{"cpu.shares": "262144", "cpu.weight": "10000"} {
			path := filepath.Join(hierarchy, name, file)
			if !exists(path) {
				continue
			}
			if err := os.WriteFile(path, []byte(most), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeTimeout limits the wait for cgroups to become empty: killed processes stay in them
// for a moment.
const removeTimeout = 5 * time.Second

// removeCgroups removes the cgroups of the run with process ID pid, which has exited or is
// about to exit, and of all runs whose process does not exist any more.
func removeCgroups(pid string) {
	for _, hierarchy := range hierarchies() {
		runs, _ := filepath.Glob(filepath.Join(hierarchy, cgroupPrefix+"*"))
		for _, run := range runs {
			owner := strings.TrimPrefix(filepath.Base(run), cgroupPrefix)
			if owner == pid || !exists("/proc/"+owner) {
				removeTree(run)
			}
		}
	}
}

func removeTree(cgroup string) {
	var dirs []string
	_ = filepath.WalkDir(cgroup, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs) // children before parents: only an empty cgroup can be removed
	deadline := time.Now().Add(removeTimeout)
	for _, dir := range dirs {
		for os.Remove(dir) != nil && exists(dir) {
			if time.Now().After(deadline) {
				fmt.Fprintf(os.Stderr, "cgroup %s is still in use: remove it with rmdir\n", dir)
				return
			}
			time.Sleep(pollInterval)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
