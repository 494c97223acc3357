package routetest

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
)

// Fleet builds a fleet of the given layout.
func Fleet(tb testing.TB, regions ...fleet.RegionLayout) *fleet.Fleet {
	tb.Helper()
	f := fleet.New(slog.New(slog.DiscardHandler))
	if err := f.Apply(fleet.Layout{Regions: regions}); err != nil {
		tb.Fatal(err)
	}
	return f
}

// Pool builds a fleet of one region "eu" with one pool "gpu" that serves the model
// "m" on every surface, and returns the pool.
func Pool(tb testing.TB, targets ...fleet.Target) *fleet.Pool {
	tb.Helper()
	f := Fleet(tb, fleet.RegionLayout{Name: "eu", Pools: []fleet.PoolLayout{{
		Name: "gpu", Models: map[string]string{"m": "m"}, Surfaces: inference.Surfaces(), Static: targets,
	}}})
	return f.Snapshot().Regions[0].Pools[0]
}

// Targets returns n targets of equal weight on hosts h0, h1, ...
func Targets(n int) []fleet.Target {
	out := make([]fleet.Target, n)
	for i := range out {
		out[i].URL = fmt.Sprintf("http://h%d:1", i)
	}
	return out
}

// Nodes returns the nodes of a pool of n targets.
func Nodes(tb testing.TB, n int) []*fleet.Node {
	tb.Helper()
	nodes, _ := Pool(tb, Targets(n)...).Nodes()
	return nodes
}

// Request returns the n-th of many different requests for the model "m": address,
// user, header X-Key, cookie key and prompt follow from n.
func Request(n uint64) *inference.Request {
	var ip [4]byte
	binary.BigEndian.PutUint32(ip[:], uint32(n*2654435761))
	key := fmt.Sprintf("key-%d", n)
	return WithPrompt(&inference.Request{
		ID: fmt.Sprintf("req-%d", n), ClientIP: netip.AddrFrom4(ip),
		Header: http.Header{"X-Key": {key}, "Cookie": {"a=b; key=" + key}},
		Fields: inference.Fields{Model: "m", User: key},
	}, fmt.Sprintf("%-1024d", n))
}

// WithPrompt gives a request that nobody else holds a body with the prompt in it,
// and returns it.
func WithPrompt(req *inference.Request, prompt string) *inference.Request {
	const head = `{"prompt":`
	req.Body = []byte(head + prompt + `}`)
	req.PromptAt = inference.Span{Start: len(head), End: len(head) + len(prompt)}
	return req
}

// Prompt returns a prompt of the given length in bytes that differs from those of
// other seeds in every block.
func Prompt(seed, bytes int) string {
	var b strings.Builder
	for i := 0; b.Len() < bytes; i++ {
		fmt.Fprintf(&b, "[%d:%d] ", seed, i)
	}
	return b.String()[:bytes]
}

// Query returns a query about the n-th request, now.
func Query(n uint64) *fleet.Query {
	return &fleet.Query{Request: Request(n), Now: time.Now().UnixNano(), Rand: (n + 1) * 0x9e3779b97f4a7c15}
}

// Hold takes n leases for req on one instance, which are given back when the test
// ends, or by the returned function.
func Hold(tb testing.TB, i *fleet.Instance, n int, req *inference.Request) (release func()) {
	tb.Helper()
	plan := fleet.NewPlan(req)
	plan.Candidates = append(plan.Candidates, fleet.Candidate{Pool: i.Pool, Model: req.Model, Picker: only{i.Live}})
	var held []*fleet.Lease
	for range n {
		l, err := plan.Acquire(time.Now(), nil)
		if err != nil {
			tb.Fatal(err)
		}
		held = append(held, l)
	}
	release = func() {
		for _, l := range held {
			l.Release(time.Now())
		}
	}
	tb.Cleanup(release)
	return release
}

// only picks one node.
type only struct{ live *fleet.Live }

// Pick implements fleet.Picker.
func (o only) Pick(_ *fleet.Query, nodes []*fleet.Node) int {
	for i, n := range nodes {
		if n.Live == o.live {
			return i
		}
	}
	return -1
}

// usage is what an instance reports, in tokens.
func usage(prompt, cached int64) inference.Usage {
	return inference.Usage{PromptTokens: prompt, CachedTokens: cached}
}
