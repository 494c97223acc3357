//go:build !linux

package registry

import "syscall"

// dieWithParent asks for nothing where the system has no such thing.
func dieWithParent() *syscall.SysProcAttr { return nil }
