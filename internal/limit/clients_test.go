package limit_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillway/spillway/internal/limit"
)

// TestHundredClients send five times what they may for 10 s, at random instants and at
// the same time: each bucket admits its burst and its rate times the time, to within 1.
func TestHundredClients(t *testing.T) {
	const clients, length, times = 100, 10 * time.Second, 5
	for name, c := range map[string]struct {
		by      []string
		bucket  limit.Bucket
		each    float64 // requests a second that one client sends
		buckets int
	}{
		"one bucket for all": {[]string{"tenant"}, per(100, time.Second, 20), times * 100.0 / clients, 1},
		"one for each":       {[]string{"tenant", "key"}, per(10, time.Second, 5), times * 10, clients},
		"for each, a minute": {[]string{"key"}, per(600, time.Minute, 7), times * 10, clients},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := rules(t, limit.Rule{Name: "one", By: c.by, Requests: c.bucket})
				admitted := make([]atomic.Int64, clients)
				begin := time.Now()
				var wg sync.WaitGroup
				for i := range clients {
					wg.Go(func() {
						gap := time.Duration(float64(time.Second) / c.each)
						for n := 0; ; n++ {
							at := begin.Add(time.Duration(n)*gap + rand.N(gap))
							if at.Sub(begin) >= length {
								return
							}
							time.Sleep(time.Until(at))
							req := request("tenant", 1)
							req.Key = fmt.Sprint("key", i)
							if _, err := l.Reserve(t.Context(), time.Now(), req); err == nil {
								admitted[i].Add(1)
							}
						}
					})
				}
				wg.Wait()
				may := float64(c.bucket.Burst) + float64(c.bucket.Rate.N)*float64(length)/float64(c.bucket.Rate.Per)
				if c.buckets == 1 {
					total := int64(0)
					for i := range admitted {
						total += admitted[i].Load()
					}
					if float64(total) > may+1 || float64(total) < may-1 {
						t.Errorf("%d were admitted, want %v", total, may)
					}
					return
				}
				for i := range admitted {
					if got := float64(admitted[i].Load()); got > may+1 || got < may-1 {
						t.Errorf("client %d: %v were admitted, want %v", i, got, may)
					}
				}
			})
		})
	}
}
