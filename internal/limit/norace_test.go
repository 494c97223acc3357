//go:build !race

package limit_test

// slower is by how much long tests are shortened.
const slower = 1
