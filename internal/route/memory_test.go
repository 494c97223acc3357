package route_test

import (
	"testing"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/routetest"
)

// copies returns many lists of the same nodes, as many snapshots make them.
func copies(nodes []*fleet.Node, n int) [][]*fleet.Node {
	out := make([][]*fleet.Node, n)
	for i := range out {
		out[i] = append([]*fleet.Node(nil), nodes...)
	}
	return out
}

func TestStateSurvivesManyLists(t *testing.T) {
	nodes, p := routetest.Nodes(t, 3), route.NewRoundRobin()
	var got string
	for _, list := range copies(nodes, 150) {
		got += turns(p, list, 1)
	}
	for i := range got {
		if got[i] != "abc"[i%3] {
			t.Fatalf("the turns begin anew at pick %d: %s", i, got)
		}
	}
}

func TestListsAreForgotten(t *testing.T) {
	nodes, p := routetest.Nodes(t, 3), route.NewRoundRobin()
	lists := copies(nodes, 100)
	q := routetest.Query(1)
	for _, list := range lists {
		p.Pick(q, list)
	}
	again := func(list []*fleet.Node) float64 {
		return testing.AllocsPerRun(1, func() { p.Pick(q, list) }) // its first, uncounted run learns the list
	}
	if n := again(lists[99]); n != 0 {
		t.Errorf("the last list: %v allocations", n)
	}
	i := 0
	if n := testing.AllocsPerRun(30, func() { p.Pick(q, lists[i]); i++ }); n == 0 {
		t.Error("a hundred lists are remembered")
	}
}
