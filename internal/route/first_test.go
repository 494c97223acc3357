package route_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/route"
)

// TestFirstRequests sends requests together at the moment at which the fleet gets
// its models: whoever comes while the picture is compiled must wait for it.
func TestFirstRequests(t *testing.T) {
	var many []fleet.PoolLayout
	for i := range 64 { // enough that compiling takes a while
		many = append(many, pool(fmt.Sprintf("p%d", i), 4, 0))
	}
	for range 50 {
		f := fleet.New(slog.New(slog.DiscardHandler))
		r := newRouter(t, by("round_robin"), map[string]route.TierConfig{}, f)
		if err := f.Apply(fleet.Layout{Regions: []fleet.RegionLayout{region("eu", many...)}}); err != nil {
			t.Fatal(err)
		}
		begin := make(chan struct{})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				<-begin
				if _, err := r.Plan(context.Background(), ask("m")); err != nil {
					t.Errorf("a first request: %v", err)
				}
			})
		}
		close(begin)
		wg.Wait()
	}
}
