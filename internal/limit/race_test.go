//go:build race

package limit_test

// slower is by how much long tests are shortened: the race detector makes every access
// of memory ten times as long, and has nothing to find in one goroutine.
const slower = 20
