//go:build race

package experiment_test

// thorough is the part of the seeds that runs: the race detector makes arithmetic ten
// times slower.
const thorough = 0.05
