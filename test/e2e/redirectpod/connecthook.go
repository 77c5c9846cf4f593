package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hook attaches an eBPF program to a cgroup FROM=TO@CGROUP that changes the address FROM of each
// connect of IPv4 to TO. Cilium implements Services and local redirect policies like this. The
// program goes when its standard input is closed.
func hook(spec string) error {
	addresses, cgroup, _ := strings.Cut(spec, "@")
	from, to, _ := strings.Cut(addresses, "=")
	program, err := loadConnectHook(from, to)
	if err != nil {
		return err
	}
	directory, err := os.Open(filepath.Clean(cgroup))
	if err != nil {
		return err
	}
	defer directory.Close()
	attach := struct{ target, program, kind, flags uint32 }{uint32(directory.Fd()), uint32(program), unix.BPF_CGROUP_INET4_CONNECT, 0}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		return fmt.Errorf("attaching the program: %w", err)
	}
	defer bpf(unix.BPF_PROG_DETACH, unsafe.Pointer(&attach), unsafe.Sizeof(attach)) //nolint:errcheck // the cgroup is removed next
	return untilEOF()
}

// The instructions of the program, as in <linux/bpf.h>: the code, the registers (the destination in
// the lower half), an offset and a number.
const (
	loadWord    = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	storeWord   = unix.BPF_STX | unix.BPF_MEM | unix.BPF_W
	jumpIfNot   = unix.BPF_JMP32 | unix.BPF_JNE | unix.BPF_K
	moveNumber  = unix.BPF_ALU | unix.BPF_MOV | unix.BPF_K
	exitProgram = unix.BPF_JMP | unix.BPF_EXIT

	addressOffset = 4 // user_ip4 of struct bpf_sock_addr
)

func loadConnectHook(from, to string) (int, error) {
	fromAddr, err := netip.ParseAddr(from)
	if err != nil {
		return 0, err
	}
	toAddr, err := netip.ParseAddr(to)
	if err != nil {
		return 0, err
	}
	number := func(a netip.Addr) uint32 { return binary.NativeEndian.Uint32(a.AsSlice()) } // in network byte order
	instructions := []struct {
		code      byte
		registers byte
		offset    int16
		number    uint32
	}{
		{loadWord, 1<<4 | 2, addressOffset, 0}, // r2 = address
		{jumpIfNot, 2, 2, number(fromAddr)},
		{moveNumber, 3, 0, number(toAddr)},
		{storeWord, 3<<4 | 1, addressOffset, 0}, // address = r3
		{moveNumber, 0, 0, 1},                   // allow the connect
		{exitProgram, 0, 0, 0},
	}
	license := []byte("Apache-2.0\x00")
	load := struct {
		kind, count           uint32
		instructions, license uintptr
		logLevel, logSize     uint32
		log                   uintptr
		kernelVersion, flags  uint32
		name                  [16]byte
		device, attachKind    uint32
	}{
		kind: unix.BPF_PROG_TYPE_CGROUP_SOCK_ADDR, count: uint32(len(instructions)),
		instructions: uintptr(unsafe.Pointer(&instructions[0])), license: uintptr(unsafe.Pointer(&license[0])),
		attachKind: unix.BPF_CGROUP_INET4_CONNECT,
	}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	runtime.KeepAlive(instructions)
	runtime.KeepAlive(license)
	if err != nil {
		return 0, fmt.Errorf("loading the program: %w", err)
	}
	return int(fd), nil
}

func bpf(command uintptr, attributes unsafe.Pointer, size uintptr) (uintptr, error) {
	result, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attributes), size)
	if errno != 0 {
		return 0, errors.New(errno.Error())
	}
	return result, nil
}
