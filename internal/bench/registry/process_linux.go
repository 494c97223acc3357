package registry

import "syscall"

// dieWithParent makes the kernel end a child with the thread that started it.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
