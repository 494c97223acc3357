package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/memory"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/wire"
)

// answers adapts a cache.
type answers struct{ *cache.Cache }

// Lookup implements gateway.Cache.
func (c answers) Lookup(now time.Time, req *inference.Request, plan *fleet.Plan) gateway.Known {
	if h := c.Cache.Lookup(now, req, plan); h != nil {
		return h
	}
	return nil
}

// still is a router and a recorder of a gateway that never generates.
type still struct{ fleet *fleet.Fleet }

func (s still) Plan(_ context.Context, req *inference.Request) (*fleet.Plan, error) {
	return testkit.Plan(s.fleet, req), nil
}
func (still) Answered(*inference.Request, *fleet.Lease, inference.Usage) {}
func (still) Begin(*inference.Record)                                    {}
func (still) Record(*inference.Record)                                   {}

// BenchmarkHit is what the gateway and the cache take of a hit in memory.
func BenchmarkHit(b *testing.B) {
	for _, form := range []string{stream, rebuilt} {
		for _, tokens := range []int{40, 400} {
			name := "stream"
			if form == rebuilt {
				name = "one piece"
			}
			b.Run(fmt.Sprintf("%s/%d", name, tokens), func(b *testing.B) {
				c := cache.New(cache.Default(), cache.Parts{Memory: memory.New(64<<20, nil), Log: testkit.Discard()})
				s := still{testkit.Fleet(b, "127.0.0.1:1")}
				g := gateway.New(gateway.Default(), gateway.Parts{Router: s, Recorder: s, Cache: answers{c}})
				body := []byte(strings.Replace(form, `"model":"m"`, `"model":"m","temperature":0`, 1))
				body = []byte(strings.Replace(string(body), "hi", strings.Repeat("words of a prompt ", 40), 1))
				fields, err := wire.ScanRequest(inference.Chat, body)
				if err != nil {
					b.Fatal(err)
				}
				request := func() *inference.Request {
					now := time.Now()
					return &inference.Request{Tenant: "t", Body: body, Fields: fields, Header: http.Header{}, Received: now, Deadline: now.Add(time.Minute)}
				}
				first := request()
				t := &inference.Transcript{Fields: []inference.HeaderField{{Name: "Content-Type", Value: "text/event-stream"}}}
				for i := range tokens + 2 {
					e := testkit.Delta("word ")
					if i == tokens {
						e = testkit.FinishEvent
					} else if i > tokens {
						e = testkit.DoneEvent
					}
					t.Body = append(t.Body, e...)
					t.Marks = append(t.Marks, inference.Mark{End: uint32(len(t.Body))})
				}
				c.Lookup(time.Now(), first, testkit.Plan(s.fleet, first)).Keep(first, "m", t)
				b.ReportAllocs()
				for b.Loop() {
					if rec := g.Serve(b.Context(), request(), gateway.Discard{}); rec.Cache != inference.CacheHit || !rec.Complete {
						b.Fatalf("got %+v", rec)
					}
				}
			})
		}
	}
}
