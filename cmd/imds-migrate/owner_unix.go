//go:build unix

package main

import (
	"io/fs"
	"os"
	"syscall"
)

// keepOwner sets the owner and group of a file to those of the file that it replaces, as far as
// this process is allowed to. Otherwise root would become the owner.
func keepOwner(f *os.File, of fs.FileInfo) {
	stat, ok := of.Sys().(*syscall.Stat_t)
	if !ok {
		return
	}
	if err := f.Chown(int(stat.Uid), int(stat.Gid)); err != nil {
		_ = f.Chown(-1, int(stat.Gid))
	}
}
