package route_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/routetest"
)

// weighted returns a pool of targets with the given weights.
func weighted(tb testing.TB, weights ...int) *fleet.Pool {
	targets := routetest.Targets(len(weights))
	for i, w := range weights {
		targets[i].Weight = w
	}
	return routetest.Pool(tb, targets...)
}

// nodesOf returns a pool's primaries.
func nodesOf(p *fleet.Pool) []*fleet.Node {
	nodes, _ := p.Nodes()
	return nodes
}

// turns picks n times and writes down the nodes as letters.
func turns(p route.Policy, nodes []*fleet.Node, n int) string {
	var b strings.Builder
	for k := range uint64(n) {
		b.WriteByte('a' + byte(p.Pick(routetest.Query(k), nodes)))
	}
	return b.String()
}

func TestRoundRobinIsSmooth(t *testing.T) {
	nodes := nodesOf(weighted(t, 5, 1, 1))
	p := route.NewRoundRobin()
	if got, want := turns(p, nodes, 14), "aabacaaaabacaa"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// The same nodes in another list, as after a reload, go on where they were.
	if got, want := turns(p, nodes, 3)+turns(p, append([]*fleet.Node(nil), nodes...), 4), "aabacaa"; got != want {
		t.Errorf("over two lists: got %s, want %s", got, want)
	}
	nodes[0].Live.SetDraining(true)
	if got, want := turns(p, nodes, 4), "bcbc"; got != want {
		t.Errorf("one drains: got %s, want %s", got, want)
	}
}

func TestLeastRequestFollowsCapacity(t *testing.T) {
	targets := routetest.Targets(3)
	targets[0].MaxInFlight, targets[1].MaxInFlight = 10, 1000 // the third counts as 64
	pool := routetest.Pool(t, targets...)
	p := route.LeastRequest{}
	if got := p.Pick(routetest.Query(1), nodesOf(pool)); got != 1 {
		t.Errorf("idle: got %d, want the largest", got)
	}
	routetest.Hold(t, pool.Instances[1], 17, routetest.Request(1)) // 18/1000 is more than 1/64
	if got := p.Pick(routetest.Query(1), nodesOf(pool)); got != 2 {
		t.Errorf("loaded: got %d, want the one of unknown capacity", got)
	}
	routetest.Hold(t, pool.Instances[2], 6, routetest.Request(1)) // 7/64 is more than 1/10
	routetest.Hold(t, pool.Instances[1], 90, routetest.Request(1))
	if got := p.Pick(routetest.Query(1), nodesOf(pool)); got != 0 {
		t.Errorf("more loaded: got %d, want the smallest", got)
	}
}

func TestPowerOfTwoAvoidsTheBusiest(t *testing.T) {
	pool := routetest.Pool(t, routetest.Targets(10)...)
	for i, inst := range pool.Instances {
		routetest.Hold(t, inst, i, routetest.Request(1))
	}
	got := make([]int, 10)
	for n := range uint64(2000) {
		got[route.PowerOfTwo{}.Pick(routetest.Query(n), nodesOf(pool))]++
	}
	if got[9] != 0 {
		t.Errorf("the busiest node won %d draws of two", got[9])
	}
	if got[0] < 300 || got[4] < 130 { // 2/10 and about 1.1/10 are due
		t.Errorf("shares: %v", got)
	}
}

func TestPowerOfTwoAmongFewOpen(t *testing.T) {
	pool := routetest.Pool(t, routetest.Targets(400)...)
	for i, inst := range pool.Instances {
		if i%100 != 50 {
			inst.Live.SetDraining(true)
		}
	}
	routetest.Hold(t, pool.Instances[350], 1, routetest.Request(1))
	got := map[int]int{}
	for n := range uint64(4000) {
		got[route.PowerOfTwo{}.Pick(routetest.Query(n), nodesOf(pool))]++
	}
	for _, i := range []int{50, 150, 250} { // 1/3 each when two are drawn; one drawn alone may be the busy one
		if got[i] < 1150 || got[i] > 1450 {
			t.Errorf("node %d: %d of 4000, want about a third: %v", i, got[i], got)
		}
	}
	if got[350] > 150 {
		t.Errorf("the busy node got %d", got[350])
	}
}

func TestRandomIsByWeightAmongOpenNodes(t *testing.T) {
	nodes := nodesOf(weighted(t, 1, 6, 3))
	nodes[1].Live.SetDraining(true)
	got := make([]int, 3)
	for n := range uint64(4000) {
		got[route.Random{}.Pick(routetest.Query(n), nodes)]++
	}
	if got[1] != 0 || got[2] < 2800 || got[2] > 3200 {
		t.Errorf("got %v, want about 1000, 0, 3000", got)
	}
}

func TestPeakEWMA(t *testing.T) {
	tests := map[string]struct {
		ttft []time.Duration // 0 is not known
		load []int
		want int
	}{
		"fastest":                  {[]time.Duration{300, 100, 200}, []int{0, 0, 0}, 1},
		"load outweighs":           {[]time.Duration{300, 100, 200}, []int{0, 9, 0}, 2},
		"unknown is as good":       {[]time.Duration{300, 100, 0}, []int{0, 1, 0}, 2},
		"unknown is tried first":   {[]time.Duration{300, 100, 0}, []int{0, 0, 0}, 2},
		"unknown has its own load": {[]time.Duration{300, 100, 0}, []int{0, 2, 3}, 0},
		"none known":               {[]time.Duration{0, 0, 0}, []int{2, 1, 2}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			pool := routetest.Pool(t, routetest.Targets(3)...)
			for i, inst := range pool.Instances {
				if tt.ttft[i] > 0 {
					inst.Live.ObserveTTFT(time.Now().UnixNano(), tt.ttft[i]*time.Millisecond)
				}
				routetest.Hold(t, inst, tt.load[i], routetest.Request(1))
			}
			votes := make([]int, 3)
			for n := range uint64(200) {
				votes[route.PeakEWMA{}.Pick(routetest.Query(n), nodesOf(pool))]++
			}
			if votes[tt.want] < 180 { // the rest explores
				t.Errorf("got %v, want node %d", votes, tt.want)
			}
		})
	}
}

func TestPeakEWMATriesAnIdleNodeAgain(t *testing.T) {
	pool := routetest.Pool(t, routetest.Targets(2)...)
	now := time.Now().UnixNano()
	pool.Instances[0].Live.ObserveTTFT(now, time.Minute)
	pool.Instances[1].Live.ObserveTTFT(now, 10*time.Millisecond)
	routetest.Hold(t, pool.Instances[1], 1, routetest.Request(1))
	slow := 0
	for n := range uint64(6400) {
		if (route.PeakEWMA{}).Pick(routetest.Query(n), nodesOf(pool)) == 0 {
			slow++
		}
	}
	if slow < 50 || slow > 200 {
		t.Errorf("the slow, idle node got %d of 6400 picks, want about 100", slow)
	}
}

func TestIPHash(t *testing.T) {
	nodes := routetest.Nodes(t, 16)
	at := func(ip string) int {
		q := routetest.Query(1)
		q.Request.ClientIP = netip.MustParseAddr(ip)
		return route.IPHash{}.Pick(q, nodes)
	}
	if a, b := at("2001:db8:1:2::1"), at("2001:db8:1:2:ffff::9"); a != b {
		t.Errorf("one /64: got %d and %d", a, b)
	}
	if a, b := at("192.0.2.7"), at("::ffff:192.0.2.7"); a != b {
		t.Errorf("IPv4 in two forms: got %d and %d", a, b)
	}
	networks, hosts, nobody := map[int]bool{}, map[int]bool{}, map[int]bool{}
	for i := range 100 {
		networks[at(fmt.Sprintf("2001:db8:1:%x::1", i))] = true
		hosts[at(fmt.Sprintf("192.0.2.%d", i))] = true
		q := routetest.Query(uint64(i))
		q.Request.ClientIP = netip.Addr{}
		nobody[route.IPHash{}.Pick(q, nodes)] = true
	}
	if len(networks) < 12 || len(hosts) < 12 || len(nobody) < 12 {
		t.Errorf("spread over %d, %d and %d of 16 nodes", len(networks), len(hosts), len(nobody))
	}
}

func TestConsistentHashKeys(t *testing.T) {
	tests := map[string]struct {
		cfg    route.HashConfig
		change func(*inference.Request) // of what must not matter
		other  func(*inference.Request, int)
	}{
		"user": {route.HashConfig{}, func(r *inference.Request) { r.ClientIP = netip.Addr{} },
			func(r *inference.Request, i int) { r.User = fmt.Sprint(i) }},
		"header": {route.HashConfig{By: "header", Name: "x-key"}, func(r *inference.Request) { r.User = "else" },
			func(r *inference.Request, i int) { r.Header["X-Key"] = []string{fmt.Sprint(i)} }},
		"cookie": {route.HashConfig{By: "cookie", Name: "key"}, func(r *inference.Request) { r.Header["Cookie"] = []string{"x=y", "b=c; key=key-1;d=e"} },
			func(r *inference.Request, i int) { r.Header["Cookie"] = []string{fmt.Sprint("key=", i)} }},
		"prompt": {route.HashConfig{By: "prompt", PromptBytes: 512}, func(r *inference.Request) { routetest.WithPrompt(r, string(r.Prompt()[:512])+"other end") },
			func(r *inference.Request, i int) { routetest.WithPrompt(r, fmt.Sprint(i)+string(r.Prompt())) }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			nodes, p := routetest.Nodes(t, 16), route.NewConsistentHash(tt.cfg)
			q := routetest.Query(1)
			home := p.Pick(q, nodes)
			tt.change(q.Request)
			if got := p.Pick(q, nodes); got != home {
				t.Errorf("same key: got %d, then %d", home, got)
			}
			seen := map[int]bool{}
			for i := range 100 {
				q := routetest.Query(1)
				tt.other(q.Request, i)
				seen[p.Pick(q, nodes)] = true
			}
			if len(seen) < 12 {
				t.Errorf("other keys reach %d of 16 nodes", len(seen))
			}
		})
	}
}

func TestConsistentHashBoundsTheLoad(t *testing.T) {
	pool := routetest.Pool(t, routetest.Targets(4)...)
	p := route.NewConsistentHash(route.HashConfig{Bound: 1.25})
	for range 400 { // one hot key
		i := p.Pick(routetest.Query(7), nodesOf(pool))
		routetest.Hold(t, pool.Instances[i], 1, routetest.Request(7))
	}
	most, fewest := int64(0), int64(1000)
	for _, i := range pool.Instances {
		most, fewest = max(most, i.Live.InFlight()), min(fewest, i.Live.InFlight())
	}
	if most != 126 && most != 125 {
		t.Errorf("the key's home holds %d of 400 on 4 nodes, want 1.25 times the mean", most)
	}
	if fewest >= 75 {
		t.Errorf("the least loaded holds %d: the key does not stay where it may", fewest)
	}
}

func TestLatency(t *testing.T) {
	tests := map[string]struct {
		rtt    []time.Duration // 0 is not known
		load   []int
		closed []int
		want   map[int]bool
	}{
		"nearest":           {rtt: []time.Duration{80, 12, 30}, load: []int{0, 50, 0}, want: map[int]bool{1: true}},
		"next when closed":  {rtt: []time.Duration{80, 12, 30}, load: []int{0, 0, 0}, closed: []int{1}, want: map[int]bool{2: true}},
		"equal share":       {rtt: []time.Duration{80, 12, 13}, load: []int{0, 5, 5}, want: map[int]bool{1: true}},
		"equal, less load":  {rtt: []time.Duration{80, 12, 13}, load: []int{0, 5, 4}, want: map[int]bool{2: true}},
		"unknown first":     {rtt: []time.Duration{80, 12, 0}, load: []int{0, 0, 3}, want: map[int]bool{2: true}},
		"unknown, but busy": {rtt: []time.Duration{80, 12, 0}, load: []int{0, 9, 4}, want: map[int]bool{1: true}},
		"none known":        {rtt: []time.Duration{0, 0, 0}, load: []int{9, 9, 8}, want: map[int]bool{2: true}},
		"only unknown open": {rtt: []time.Duration{80, 12, 0}, load: []int{0, 0, 9}, closed: []int{0, 1}, want: map[int]bool{2: true}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			pool := routetest.Pool(t, routetest.Targets(3)...)
			for i, inst := range pool.Instances {
				if tt.rtt[i] > 0 {
					inst.Live.ObserveRoundTrip(tt.rtt[i] * time.Millisecond)
				}
				routetest.Hold(t, inst, tt.load[i], routetest.Request(1))
			}
			for _, i := range tt.closed {
				pool.Instances[i].Live.SetDraining(true)
			}
			got := map[int]bool{}
			p := route.NewLatency(route.LatencyConfig{})
			for n := range uint64(50) {
				got[p.Pick(routetest.Query(n), nodesOf(pool))] = true
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("picked nodes (-want +got):\n%s", d)
			}
		})
	}
}
