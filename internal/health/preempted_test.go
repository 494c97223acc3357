package health_test

import (
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/health"
)

func TestPreemptionsAreRead(t *testing.T) {
	const running = "vllm:num_requests_running 3\nvllm:num_requests_waiting 2\n"
	for name, c := range map[string]struct {
		text string
		want int64
	}{
		"exported":     {running + "vllm:num_preemptions_total{engine=\"0\"} 7\nvllm:num_preemptions_total{engine=\"1\"} 5\n", 12},
		"not exported": {running, -1},
		"not a number": {running + "vllm:num_preemptions_total NaN\n", -1},
		"negative":     {running + "vllm:num_preemptions_total -1\n", -1},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := health.Preempted(strings.NewReader(c.text), "vllm")
			if err != nil || got != c.want {
				t.Errorf("got %d, %v, want %d", got, err, c.want)
			}
		})
	}
}
