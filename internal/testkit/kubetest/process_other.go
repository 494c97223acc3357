//go:build !linux

package kubetest

import "syscall"

// dieWithParent asks for nothing where the system has no such thing.
func dieWithParent() *syscall.SysProcAttr { return nil }
