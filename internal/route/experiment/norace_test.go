//go:build !race

package experiment_test

// thorough is the part of the seeds that runs.
const thorough = 1.0
