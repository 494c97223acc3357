package load_test

import (
	"context"
	"fmt"
	"net/http/httptest"

	"github.com/spillway/spillway/internal/load"
)

// A run against any OpenAI-compatible server: ten requests within a fifth of a
// second.
func ExampleRun() {
	server := httptest.NewServer(sse(token, token, finish, done))
	defer server.Close()
	cfg := load.Default()
	cfg.Target.BaseURLs = []string{server.URL}
	cfg.Target.Model = "my-model"
	cfg.Schedule.Profile = "50/s:200ms"
	cfg.Schedule.Arrivals = load.Uniform
	report, err := load.Run(context.Background(), cfg, load.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	s := report.Systems[0]
	fmt.Println(s.Offered, s.Answered, s.OutputTokens, *s.Availability)
	// Output: 10 10 20 1
}

// A profile of steps, ramps and bursts.
func ExampleParseProfile() {
	segments, err := load.ParseProfile("10/s:30s,ramp 10-50/s:60s,burst 200/s:5s")
	fmt.Println(segments, err)
	// Output: [{10 10 30s} {10 50 1m0s} {200 200 5s}] <nil>
}
