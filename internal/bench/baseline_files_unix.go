//go:build unix

package bench

import "syscall"

// openFiles is the number of files that a process may have open.
func openFiles() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return usualFiles
	}
	return int(min(limit.Cur, mostFiles))
}
