package health_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/health"
)

func TestModelsAreTheUnionOfWhatInstancesList(t *testing.T) {
	var mu sync.Mutex
	lists := map[string]string{}
	asked := map[string]int{}
	set := func(host, list string) {
		mu.Lock()
		defer mu.Unlock()
		lists[host] = list
	}
	bubble(t, func(p *health.Pool) {
		p.Config.Active.Type, p.LearnModels = health.CheckOff, true
		p.Transport = transport(func(req *http.Request) (int, string, error) {
			mu.Lock()
			defer mu.Unlock()
			asked[req.URL.Host]++
			list, ok := lists[req.URL.Host]
			if !ok || req.URL.Path != "/v1/models" {
				return 0, "", errors.New("refused")
			}
			return 200, list, nil
		})
	}, func(r *rig) {
		stop := r.run()
		defer stop()
		expect := func(want ...string) {
			t.Helper()
			if diff := cmp.Diff(want, r.fleet.Snapshot().Models()); diff != "" {
				t.Errorf("models (-want +got):\n%s", diff)
			}
		}
		after(10 * time.Second)
		expect()
		if n := r.log.Count("cannot be learned"); n != 1 {
			t.Errorf("logged %d times", n)
		}
		set("a:1", `{"data":[{"id":"x"},{"id":"y"}]}`)
		after(1100 * time.Millisecond) // asked every second while nothing is known
		expect("x", "y")
		set("b:1", `{"object":"list","data":[{"id":"z","owned_by":"me"},{"id":"x"},{"id":""}]}`)
		after(31 * time.Second)
		expect("x", "y", "z")
		for _, problem := range []string{"", "<html>"} {
			set("b:1", problem)
			after(2 * time.Minute)
			expect("x", "y", "z") // out of reach is not gone
		}
		set("b:1", `{"data":[]}`)
		after(31 * time.Second)
		expect("x", "y")
		r.layout("b:1")
		set("b:1", `{"data":[{"id":"z"}]}`)
		after(31 * time.Second)
		expect("z")

		set("c:1", `{"data":[{"id":"c"}]}`)
		mu.Lock()
		clear(asked)
		mu.Unlock()
		for range 10 { // a list that flaps asks only for what is new
			r.layout("b:1", "c:1")
			after(500 * time.Millisecond)
			r.layout("b:1")
			after(500 * time.Millisecond)
		}
		mu.Lock()
		if n := asked["b:1"]; n > 1 {
			t.Errorf("asked the instance that stayed %d times in 10 s", n)
		}
		mu.Unlock()
		r.layout("b:1", "c:1")
		after(2 * time.Second)
		expect("c", "z")

		after(31 * time.Second)
		for range 100 { // nor is one that does not answer asked at each change
			r.layout("b:1", "c:1", "dead:1")
			after(10 * time.Millisecond)
			r.layout("b:1", "c:1", "dead:1", "dead:2")
			after(10 * time.Millisecond)
		}
		mu.Lock()
		defer mu.Unlock()
		if n := asked["dead:1"]; n < 1 || n > 3 {
			t.Errorf("asked the instance that does not answer %d times in 2 s", n)
		}
	}, "a:1", "b:1")
}

func TestAnInstanceThatComesUpIsAskedAtOnce(t *testing.T) {
	p := new(port)
	bubble(t, func(pool *health.Pool) {
		pool.Dial, pool.LearnModels = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "a:1" {
				return new(port).dial(ctx, network, address)
			}
			return p.dial(ctx, network, address)
		}, true
		pool.Transport = transport(func(req *http.Request) (int, string, error) {
			if req.URL.Host == "b:1" && p.closed.Load() {
				return 0, "", errors.New("refused")
			}
			return 200, `{"data":[{"id":"` + req.URL.Hostname() + `"}]}`, nil
		})
	}, func(r *rig) {
		p.closed.Store(true)
		stop := r.run()
		defer stop()
		after(92 * time.Second) // two seconds after a round that asked all
		if diff := cmp.Diff([]string{"a"}, r.fleet.Snapshot().Models()); diff != "" {
			t.Errorf("models (-want +got):\n%s", diff)
		}
		p.closed.Store(false)
		after(10 * time.Second)
		if diff := cmp.Diff([]string{"a", "b"}, r.fleet.Snapshot().Models()); diff != "" {
			t.Errorf("models (-want +got):\n%s", diff)
		}
	}, "a:1", "b:1")
}
