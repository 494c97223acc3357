//go:build !race

package routetest

// raceEnabled says that the race detector is on.
const raceEnabled = false
