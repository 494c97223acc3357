package route_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
)

// exampleNodes makes three instances with weights 2, 1 and 1.
func exampleNodes() []*fleet.Node {
	f := fleet.New(slog.New(slog.DiscardHandler))
	err := f.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{{
		Name: "gpu", Models: map[string]string{"m": "m"}, Surfaces: inference.Surfaces(),
		Static: []fleet.Target{{URL: "http://a:1", Weight: 2}, {URL: "http://b:1"}, {URL: "http://c:1"}},
	}}}}})
	if err != nil {
		panic(err)
	}
	nodes, _ := f.Snapshot().Regions[0].Pools[0].Nodes()
	return nodes
}

// exampleQuery asks about a request of the given client and user.
func exampleQuery(rand uint64) *fleet.Query {
	return &fleet.Query{
		Request: &inference.Request{ClientIP: netip.MustParseAddr("192.0.2.7"), Fields: inference.Fields{Model: "m", User: "ann"}},
		Now:     time.Now().UnixNano(), Rand: rand,
	}
}

func ExampleRoundRobin() {
	nodes, p := exampleNodes(), route.NewRoundRobin()
	for range 4 {
		fmt.Println(nodes[p.Pick(exampleQuery(0), nodes)].Name)
	}
	// Output:
	// eu/gpu/a:1
	// eu/gpu/b:1
	// eu/gpu/c:1
	// eu/gpu/a:1
}

func ExampleLeastRequest() {
	nodes := exampleNodes()
	fmt.Println(nodes[route.LeastRequest{}.Pick(exampleQuery(1), nodes)].Name)
	// Output: eu/gpu/a:1
}

func ExamplePowerOfTwo() {
	nodes := exampleNodes()
	nodes[1].Live.SetDraining(true)
	nodes[2].Live.SetDraining(true)
	fmt.Println(nodes[route.PowerOfTwo{}.Pick(exampleQuery(1), nodes)].Name)
	// Output: eu/gpu/a:1
}

func ExampleRandom() {
	nodes := exampleNodes()
	count := map[string]int{}
	for n := range uint64(1000) {
		count[nodes[route.Random{}.Pick(exampleQuery(n), nodes)].Name]++
	}
	fmt.Println(count["eu/gpu/a:1"] > count["eu/gpu/b:1"], len(count))
	// Output: true 3
}

func ExamplePeakEWMA() {
	nodes := exampleNodes()
	now := time.Now().UnixNano()
	for i, ms := range []time.Duration{900, 300, 400} {
		nodes[i].Live.ObserveTTFT(now, ms*time.Millisecond)
	}
	fmt.Println(nodes[route.PeakEWMA{}.Pick(exampleQuery(1), nodes)].Name)
	// Output: eu/gpu/b:1
}

func ExampleIPHash() {
	nodes := exampleNodes()
	home := route.IPHash{}.Pick(exampleQuery(1), nodes)
	nodes[home].Live.SetDraining(true)
	away := route.IPHash{}.Pick(exampleQuery(2), nodes)
	nodes[home].Live.SetDraining(false)
	fmt.Println(away != home, route.IPHash{}.Pick(exampleQuery(3), nodes) == home)
	// Output: true true
}

func ExampleConsistentHash() {
	nodes, p := exampleNodes(), route.NewConsistentHash(route.HashConfig{By: "user"})
	fmt.Println(p.Pick(exampleQuery(1), nodes) == p.Pick(exampleQuery(2), nodes))
	// Output: true
}

func ExamplePrefixAffinity() {
	nodes, p := exampleNodes(), route.NewPrefixAffinity(route.PrefixConfig{})
	q := exampleQuery(1)
	q.Request.Body = fmt.Appendf(nil, "%-4096s", "You are a helpful assistant.")
	q.Request.PromptAt = inference.Span{Start: 0, End: 4096}
	home := p.Pick(q, nodes)
	q.Request.Body = append(q.Request.Body, "And then?"...)
	q.Request.PromptAt.End = len(q.Request.Body)
	q.Rand = 99
	fmt.Println(p.Pick(q, nodes) == home)
	// Output: true
}

func ExampleLatency() {
	nodes, p := exampleNodes(), route.NewLatency(route.LatencyConfig{})
	for i, ms := range []time.Duration{80, 12, 30} {
		nodes[i].Live.ObserveRoundTrip(ms * time.Millisecond)
	}
	fmt.Println(nodes[p.Pick(exampleQuery(1), nodes)].Name)
	// Output: eu/gpu/b:1
}

func ExampleRouter() {
	f := fleet.New(slog.New(slog.DiscardHandler))
	pool := func(name string, host string) fleet.PoolLayout {
		return fleet.PoolLayout{
			Name: name, Models: map[string]string{"chat": "llama"}, Surfaces: inference.Surfaces(),
			Static: []fleet.Target{{URL: "http://" + host, MaxInFlight: 1}},
		}
	}
	spot := pool("spot", "b:1")
	spot.Backup = true
	if err := f.Apply(fleet.Layout{Regions: []fleet.RegionLayout{{Name: "eu", Pools: []fleet.PoolLayout{pool("gpu", "a:1"), spot}}}}); err != nil {
		panic(err)
	}
	r, err := route.New(route.Default(), nil, f, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	for range 2 {
		plan, err := r.Plan(context.Background(), &inference.Request{Fields: inference.Fields{Model: "chat"}})
		if err != nil {
			panic(err)
		}
		lease, err := plan.Acquire(time.Now(), nil)
		if err != nil {
			panic(err)
		}
		defer lease.Release(time.Now())
		fmt.Println(lease.Instance.Name, lease.Candidate.Model)
	}
	_, err = r.Plan(context.Background(), &inference.Request{Fields: inference.Fields{Model: "gpt"}})
	fmt.Println(err)
	// Output:
	// eu/gpu/a:1 llama
	// eu/spot/b:1 llama
	// model_not_found: the model "gpt" is not served here
}
