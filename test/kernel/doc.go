// Package kernel tests proxy-init on another kernel than the machine's: Debian's, in an emulated
// machine (QEMU), where each module of nftables can be missing. The test needs the build tag kernel,
// QEMU and the unpacked package of the kernel; `make test-kernel` has them.
package kernel
