package sqltest

import "syscall"

// attributes make a server end with this process.
func attributes(end syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: end}
}
