//go:build !linux

package sqltest

import "syscall"

// attributes are none: only Linux ends a process with another one.
func attributes(syscall.Signal) *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
