package route_test

import (
	"fmt"
	"testing"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/routetest"
)

// about asks about a prompt.
func about(n uint64, prompt string) *fleet.Query {
	q := routetest.Query(n)
	routetest.WithPrompt(q.Request, prompt)
	return q
}

func TestPrefixAffinityFollowsAConversation(t *testing.T) {
	nodes, p := routetest.Nodes(t, 8), route.NewPrefixAffinity(route.PrefixConfig{})
	for talk := range 20 {
		prompt := routetest.Prompt(talk, 8<<10)
		home := p.Pick(about(uint64(talk), prompt), nodes)
		for turn := range uint64(10) {
			prompt += routetest.Prompt(1000+talk, 1<<10)
			if got := p.Pick(about(turn, prompt), nodes); got != home {
				t.Fatalf("talk %d, turn %d: got %d, want %d", talk, turn, got, home)
			}
		}
	}
}

func TestPrefixAffinityThreshold(t *testing.T) {
	base := routetest.Prompt(1, 64<<10)
	tests := map[string]struct {
		model  string
		prompt func(k int) string
		sticks bool
	}{
		"same":          {"m", func(int) string { return base }, true},
		"80% shared":    {"m", func(k int) string { return base[:52736] + routetest.Prompt(k+2, 13056) }, true}, // 206 of 257 blocks
		"half shared":   {"m", func(k int) string { return base[:32<<10] + routetest.Prompt(k+2, 32<<10) }, false},
		"shorter":       {"m", func(int) string { return base[:9<<10] }, true},
		"other opening": {"m", func(k int) string { return fmt.Sprintf("%-256d", k) + base }, false},
		"other model":   {"n", func(int) string { return base }, false},
		"tiny":          {"m", func(int) string { return base[:200] }, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			differ := 0
			for try := range uint64(20) { // by chance a cold prompt meets the warm node too
				nodes, p := routetest.Nodes(t, 16), route.NewPrefixAffinity(route.PrefixConfig{})
				home := p.Pick(about(try, base), nodes)
				q := about(try+100, tt.prompt(int(try)))
				q.Request.Model = tt.model
				if p.Pick(q, nodes) != home {
					differ++
				}
			}
			if tt.sticks && differ > 0 || !tt.sticks && differ < 10 {
				t.Errorf("%d of 20 went elsewhere, sticks: %v", differ, tt.sticks)
			}
		})
	}
}

func TestPrefixAffinityLetsGo(t *testing.T) {
	prompt := routetest.Prompt(1, 8<<10)
	big := routetest.WithPrompt(&inference.Request{Fields: inference.Fields{Model: "m"}}, routetest.Prompt(2, 40_000)) // 10,000 tokens
	small := routetest.WithPrompt(&inference.Request{Fields: inference.Fields{Model: "m"}}, "x")
	tests := map[string]struct {
		onHome, onOthers int
		req              *inference.Request
		sticks           bool
	}{
		"idle":                {0, 0, small, true},
		"tokens ahead":        {7, 0, big, false},
		"few tokens ahead":    {6, 0, big, true},
		"all have tokens":     {12, 8, big, true},
		"requests ahead":      {65, 0, small, false},
		"few requests ahead":  {64, 0, small, true},
		"ahead, but not 1.5x": {265, 200, small, true},
		"1.5x, but not ahead": {100, 50, small, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			pool, p := routetest.Pool(t, routetest.Targets(6)...), route.NewPrefixAffinity(route.PrefixConfig{})
			nodes := nodesOf(pool)
			home := p.Pick(about(1, prompt), nodes)
			for i, inst := range pool.Instances {
				n := tt.onOthers
				if i == home {
					n = tt.onHome
				}
				routetest.Hold(t, inst, n, tt.req)
			}
			if got := p.Pick(about(2, prompt), nodes); (got == home) != tt.sticks {
				t.Errorf("home %d, got %d, sticks: %v", home, got, tt.sticks)
			}
		})
	}
}

func TestPrefixAffinityIgnoresClosedNodesInTheComparison(t *testing.T) {
	pool, p := routetest.Pool(t, routetest.Targets(3)...), route.NewPrefixAffinity(route.PrefixConfig{})
	nodes, prompt := nodesOf(pool), routetest.Prompt(1, 8<<10)
	home := p.Pick(about(1, prompt), nodes)
	for i, inst := range pool.Instances {
		if i == (home+1)%3 {
			inst.Live.SetDraining(true) // idle, as a dead node looks
			continue
		}
		routetest.Hold(t, inst, 90, routetest.Request(1))
	}
	if got := p.Pick(about(2, prompt), nodes); got != home {
		t.Errorf("got %d, want %d: a closed node's idleness is no imbalance", got, home)
	}
}

func TestPrefixAffinitySharesAHotPrefix(t *testing.T) {
	pool, p := routetest.Pool(t, routetest.Targets(4)...), route.NewPrefixAffinity(route.PrefixConfig{})
	prompt := routetest.Prompt(1, 8<<10)
	for n := range uint64(800) {
		i := p.Pick(about(n, prompt), nodesOf(pool))
		routetest.Hold(t, pool.Instances[i], 1, routetest.Request(1))
	}
	for i, inst := range pool.Instances {
		if n := inst.Live.InFlight(); n < 150 || n > 300 {
			t.Errorf("instance %d holds %d of 800", i, n)
		}
	}
}

func TestPrefixAffinityForgets(t *testing.T) {
	prompt := routetest.Prompt(1, 64<<10)
	usage := func(cached int64) inference.Usage {
		return inference.Usage{PromptTokens: 16000, CachedTokens: cached}
	}
	tests := map[string]struct {
		reports []int64 // cached tokens, one answer after the other
		sticks  bool
	}{
		"as believed":        {[]int64{0, 15900, 15900}, true},
		"somewhat less":      {[]int64{0, 15900, 8000}, true},
		"far less":           {[]int64{0, 15900, 1000}, false},
		"suddenly nothing":   {[]int64{0, 15900, 0}, false},
		"does not report":    {[]int64{0, 0, 0, 0}, true},
		"nothing, then more": {[]int64{0, 0, 14000}, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			moved := 0
			for try := range uint64(20) {
				nodes, p := routetest.Nodes(t, 16), route.NewPrefixAffinity(route.PrefixConfig{})
				home := -1
				for k, cached := range tt.reports {
					q := about(try*10+uint64(k), prompt)
					home = p.Pick(q, nodes)
					p.Observe(q.Request, nodes[home], usage(cached))
				}
				if p.Pick(about(try*10+9, prompt), nodes) != home {
					moved++
				}
			}
			if tt.sticks && moved > 0 || !tt.sticks && moved < 10 {
				t.Errorf("%d of 20 moved, sticks: %v", moved, tt.sticks)
			}
		})
	}
}

func TestPrefixAffinityIsBounded(t *testing.T) {
	// 1,024 blocks a node and 4 nodes: of 100 prompts of 256 blocks about 16 fit.
	nodes := routetest.Nodes(t, 4)
	p := route.NewPrefixAffinity(route.PrefixConfig{Blocks: 1024})
	prompts := make([]string, 100)
	first := make([]int, len(prompts))
	for i := range prompts {
		prompts[i] = routetest.Prompt(i, 64<<10)
		first[i] = p.Pick(about(uint64(i), prompts[i]), nodes)
	}
	last := len(prompts) - 1
	for n := range uint64(8) { // the newest is still there
		if got := p.Pick(about(n, prompts[last]), nodes); got != first[last] {
			t.Fatalf("newest: got %d, want %d", got, first[last])
		}
	}
	stay := 0
	for i := range 40 { // the oldest are gone: chance decides
		if p.Pick(about(uint64(1000+i*7), prompts[i]), nodes) == first[i] {
			stay++
		}
	}
	if stay > 25 {
		t.Errorf("%d of 40 forgotten prompts still go home", stay)
	}
}

func TestPrefixAffinityKeepsWhatIsUsed(t *testing.T) {
	// Ten short prompts in use while ten times the memory passes through.
	nodes := routetest.Nodes(t, 4)
	p := route.NewPrefixAffinity(route.PrefixConfig{Blocks: 2048})
	var hot []string
	var home []int
	for i := range 10 {
		hot = append(hot, routetest.Prompt(i, 4<<10))
		home = append(home, p.Pick(about(uint64(i), hot[i]), nodes))
	}
	lost := 0
	for n := range 600 {
		p.Pick(about(uint64(n), routetest.Prompt(100+n, 32<<10)), nodes)
		i := n % len(hot)
		if got := p.Pick(about(uint64(n), hot[i]), nodes); got != home[i] {
			lost++
			home[i] = got
		}
	}
	if lost > 12 { // sets of eight lose a block now and then
		t.Errorf("lost %d of 600 times", lost)
	}
}

func TestPrefixAffinitySurvivesANewList(t *testing.T) {
	nodes, p := routetest.Nodes(t, 16), route.NewPrefixAffinity(route.PrefixConfig{})
	prompt := routetest.Prompt(1, 16<<10)
	home := nodes[p.Pick(about(1, prompt), nodes)].Name
	again := routetest.Nodes(t, 16) // other nodes of the same names
	for n := range uint64(10) {
		if got := again[p.Pick(about(n, prompt), again)].Name; got != home {
			t.Fatalf("got %s, want %s", got, home)
		}
	}
}

func BenchmarkPrefixAffinity(b *testing.B) {
	for _, n := range []int{4, 64} {
		for _, kib := range []int{4, 16, 128, 512} {
			for _, kind := range []string{"warm", "cold"} {
				b.Run(fmt.Sprintf("nodes=%d/prompt=%dKiB/%s", n, kib, kind), func(b *testing.B) {
					nodes, p := routetest.Nodes(b, n), route.NewPrefixAffinity(route.PrefixConfig{})
					q := about(1, routetest.Prompt(1, kib<<10))
					at := q.Request.PromptAt.Start
					seed := uint32(0)
					b.SetBytes(int64(kib) << 10)
					b.ReportAllocs()
					for b.Loop() {
						q.Rand += 0x9e3779b97f4a7c15
						if kind == "cold" {
							seed++
							q.Request.Body[at], q.Request.Body[at+1], q.Request.Body[at+2] = byte(seed), byte(seed>>8), byte(seed>>16)
						}
						if p.Pick(q, nodes) < 0 {
							b.Fatal("nothing open")
						}
					}
				})
			}
		}
	}
}
