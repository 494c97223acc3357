package bench

import (
	"fmt"

	"github.com/spillway/spillway/internal/load"
)

// The requirements on refusals.
const (
	refusedInServer = 1.0  // ms, p99, from the body read to the answer written
	refusedAtClient = 5.0  // ms, p99
	refusedLag      = 1.0  // ms, p99 of the schedule lag, above which the client's time says nothing
	honest          = 0.95 // of those who come back with a ticket
)

// refusedWell judges how the system spillway refuses.
func refusedWell(systems []load.System) []Verdict {
	var out []Verdict
	for _, s := range systems {
		if s.Name != SystemSpillway || s.Rejections == nil || s.Rejections.Count == 0 {
			continue
		}
		at := fmt.Sprintf("%s %gx: ", s.Name, s.Load)
		if p99 := s.Rejections.ServerP99MS; p99 != nil {
			out = append(out, verdict(at+"refusal p99 in the server", *p99, AtMost, refusedInServer, "ms"))
		}
		if p99 := s.Rejections.P99MS; p99 != nil && s.ScheduleLag != nil && s.ScheduleLag.P99 <= refusedLag {
			out = append(out, verdict(at+"refusal p99 at the client", *p99, AtMost, refusedAtClient, "ms"))
		}
		if s.RetryAfterHonesty != nil {
			out = append(out, verdict(at+"promises of tickets kept", *s.RetryAfterHonesty, AtLeast, honest, ""))
		}
	}
	return out
}
