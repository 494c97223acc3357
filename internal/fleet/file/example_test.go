package file_test

import (
	"fmt"

	"github.com/spillway/spillway/internal/fleet/file"
)

func ExampleParse() {
	targets, warnings, err := file.Parse([]byte(`
- targets: ["10.0.0.1:8000", "10.0.0.2:8000"]
  labels: {weight: "2", job: vllm}
`), false)
	fmt.Println(targets, warnings, err)
	// Output: [{http://10.0.0.1:8000 2 false 0} {http://10.0.0.2:8000 2 false 0}] [label "job" is not used] <nil>
}
