package limit_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/limit"
)

// A tenant may send two requests at once and one more each second.
func Example() {
	c := limit.Default()
	c.Rules = []limit.Rule{{
		Name: "tenants", By: []string{"tenant"}, Requests: limit.Bucket{Rate: limit.Rate{N: 60, Per: time.Minute}, Burst: 2},
	}}
	l, err := limit.New(c, limit.Parts{})
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	req := &inference.Request{Tenant: "acme", Fields: inference.Fields{Model: "m"}}
	for range 3 {
		r, err := l.Reserve(context.Background(), now, req)
		var refusal *inference.Error
		if errors.As(err, &refusal) {
			fmt.Println(refusal.Reason, refusal.RetryAfter)
			continue
		}
		for _, f := range r.Fields(now) {
			if f.Name == "Ratelimit" {
				fmt.Println(f.Value)
			}
		}
		r.Settle(now, &inference.Record{Request: req})
	}
	// Output:
	// "tenants-requests";r=1;t=1
	// "tenants-requests";r=0;t=2
	// rate_requests 1s
}

// Buckets of one request are checked together, and all are charged or none.
func ExampleMemory() {
	m := limit.NewMemory(10_000)
	now := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	ask := func(bucket uint64, size time.Duration) limit.Ask {
		return limit.Ask{Key: limit.Key{bucket, bucket}, Cost: int64(time.Second), Room: int64(time.Second), Size: int64(size)}
	}
	for range 3 {
		ok, _ := m.Take(context.Background(), now, []limit.Ask{ask(1, 2*time.Second), ask(2, time.Minute)})
		fmt.Println(ok)
	}
	// Output:
	// true
	// true
	// false
}

// Rates are written as people say them.
func ExampleRate() {
	r, err := limit.ParseRate("600/m")
	fmt.Println(r, r.N, r.Per, err)
	// Output: 600/m 600 1m0s <nil>
}
