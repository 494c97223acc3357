//go:build unix

package api_test

import "syscall"

// smallReceiveBuffer makes a client that can hold little that it has not read.
func smallReceiveBuffer(_, _ string, c syscall.RawConn) error {
	var serr error
	if err := c.Control(func(fd uintptr) { serr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8<<10) }); err != nil {
		return err
	}
	return serr
}
