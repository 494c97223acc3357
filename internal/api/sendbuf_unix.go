//go:build unix

package api

import "syscall"

// setSendBuffer bounds what the kernel keeps for a client that does not read.
func setSendBuffer(fd uintptr, size int) error {
	return syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, size)
}
