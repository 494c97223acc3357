package bench_test

import (
	"fmt"

	"github.com/spillway/spillway/internal/bench"
)

func ExampleVerdict() {
	fmt.Println(bench.Verdict{Name: "streams broken", Value: 2, Relation: bench.Exactly, Limit: 0})
	// Output: streams broken                                                          2 (= 0)  MISSED
}
