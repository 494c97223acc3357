//go:build race

package routetest

// raceEnabled says that the race detector is on: sync.Pool then drops values at
// random, so allocations cannot be counted.
const raceEnabled = true
