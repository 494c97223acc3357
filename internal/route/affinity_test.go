package route_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/routetest"
)

// sticky is a tier with affinity over a policy that never stays.
func sticky(a route.AffinityConfig) route.TierConfig {
	return route.TierConfig{PolicyConfig: route.PolicyConfig{Policy: "round_robin"}, Affinity: a}
}

// stickyRouter has the affinity at all three tiers of 3 regions x 3 pools x 3
// instances.
func stickyRouter(t *testing.T, a route.AffinityConfig, change func(*route.Config)) (*route.Router, *fleet.Fleet) {
	t.Helper()
	var layout []fleet.RegionLayout
	tiers := map[string]route.TierConfig{}
	for _, r := range []string{"eu", "us", "ap"} {
		tiers[r] = sticky(a)
		var pools []fleet.PoolLayout
		for _, p := range []string{"a", "b", "c"} {
			pools = append(pools, pool(r+p, 3, 2))
			tiers[r+"/"+r+p] = sticky(a)
		}
		layout = append(layout, region(r, pools...))
	}
	f := routetest.Fleet(t, layout...)
	cfg := route.Default()
	cfg.TierConfig = sticky(a)
	if change != nil {
		change(&cfg)
	}
	return newRouter(t, cfg, tiers, f), f
}

// client sends requests with what its last answers told it.
type client struct {
	router *route.Router
	req    *inference.Request
	cookie string // as last set
}

// newClient returns a client known by address, header and user.
func newClient(r *route.Router, n int) *client {
	req := ask("m")
	req.Header = http.Header{"X-Session": {fmt.Sprint("s", n)}}
	req.User = fmt.Sprint("u", n)
	req.ClientIP = netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
	return &client{router: r, req: req}
}

// send runs one request and returns its instance; the lease is given back at once.
// set is the Set-Cookie value of the answer.
func (c *client) send(t *testing.T) (i *fleet.Instance, set string) {
	t.Helper()
	p := mustPlan(t, c.router, c.req)
	l, err := p.Acquire(time.Now(), nil)
	if err != nil {
		t.Fatal(err)
	}
	l.Release(time.Now())
	if p.Cookie != nil {
		if set = p.Cookie(l.Instance); set != "" {
			c.cookie, _, _ = strings.Cut(set, ";")
			c.req.Header["Cookie"] = []string{"theme=dark; " + c.cookie + "; spillway_sessions=no"}
		}
	}
	return l.Instance, set
}

func TestAffinityAtEveryTier(t *testing.T) {
	for name, a := range map[string]route.AffinityConfig{
		"cookie": {By: "cookie"}, "client_ip": {By: "client_ip"}, "user": {By: "user"}, "header": {By: "header", Header: "x-session"},
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := stickyRouter(t, a, nil)
			seen := map[string]bool{}
			for n := range 60 {
				c := newClient(r, n)
				home, _ := c.send(t)
				seen[home.Name] = true
				for range 5 {
					if got, set := c.send(t); got != home || set != "" {
						t.Fatalf("client %d: got %s with cookie %q, want %s", n, got.Name, set, home.Name)
					}
				}
			}
			if len(seen) < 18 {
				t.Errorf("60 clients are on %d of 27 instances", len(seen))
			}
			c := newClient(r, 7)
			home, _ := c.send(t)
			for status, letGo := range map[string]func() (undo func()){
				"down":     func() func() { home.Live.SetDown(true, 0); return func() { home.Live.SetDown(false, 0) } },
				"draining": func() func() { home.Live.SetDraining(true); return func() { home.Live.SetDraining(false) } },
				"full":     func() func() { return routetest.Hold(t, home, 2, ask("m")) },
			} {
				before := c.cookie
				undo := letGo()
				other, set := c.send(t)
				if other == home {
					t.Errorf("%s: the client stayed", status)
				}
				if (a.By == "cookie") != (set != "") {
					t.Errorf("%s: cookie %q", status, set)
				}
				if other.Pool != home.Pool {
					t.Errorf("%s: the client left its pool for %s", status, other.Name)
				}
				undo()
				if a.By == "cookie" {
					if got, _ := c.send(t); got != other {
						t.Errorf("%s: the new cookie leads to %s, want %s", status, got.Name, other.Name)
					}
					c.cookie, c.req.Header["Cookie"] = before, []string{before}
				}
				if got, _ := c.send(t); got != home {
					t.Errorf("%s is over: got %s, want %s", status, got.Name, home.Name)
				}
			}
			for _, p := range home.Pool.Region.Pools {
				for _, i := range p.Instances {
					i.Live.SetDown(true, 0)
				}
			}
			if got, _ := c.send(t); got.Pool.Region == home.Pool.Region {
				t.Error("the client stayed in a region that is down")
			}
		})
	}
}

func TestAffinityAvoidsTheTried(t *testing.T) {
	r, _ := stickyRouter(t, route.AffinityConfig{By: "user"}, nil)
	p := mustPlan(t, r, newClient(r, 1).req)
	var tried []*fleet.Instance
	for range 27 {
		l, err := p.Acquire(time.Now(), tried)
		if err != nil {
			t.Fatalf("after %d: %v", len(tried), err)
		}
		for _, i := range tried {
			if i == l.Instance {
				t.Fatalf("%s again", i.Name)
			}
		}
		tried = append(tried, l.Instance)
	}
}

func TestCookie(t *testing.T) {
	tests := map[string]struct {
		ttl    time.Duration
		secure bool
		want   string
	}{
		"session": {0, false, `^spillway_session=[\w-]{16}\.[\w-]{16}\.[\w-]{16}; Path=/; HttpOnly; SameSite=Lax$`},
		"ttl":     {time.Hour, false, `^spillway_session=[\w-]{16}\.[\w-]{16}\.[\w-]{16}; Max-Age=3600; Path=/; HttpOnly; SameSite=Lax$`},
		"secure":  {0, true, `^spillway_session=[\w-]{16}\.[\w-]{16}\.[\w-]{16}; Path=/; HttpOnly; SameSite=Lax; Secure$`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r, _ := stickyRouter(t, route.AffinityConfig{By: "cookie", TTL: tt.ttl}, func(c *route.Config) { c.Cookie.Secure = tt.secure })
			c := newClient(r, 1)
			_, set := c.send(t)
			if !regexp.MustCompile(tt.want).MatchString(set) {
				t.Errorf("got %q, want %s", set, tt.want)
			}
			if parsed, err := http.ParseSetCookie(set); err != nil || !parsed.HttpOnly || parsed.SameSite != http.SameSiteLaxMode {
				t.Errorf("browsers read %v, %v", parsed, err)
			}
			if _, again := c.send(t); (again != "") != (tt.ttl > 0) {
				t.Errorf("second answer: cookie %q", again)
			}
		})
	}
}

func TestCookieOfSomeTiers(t *testing.T) {
	f := routetest.Fleet(t, region("eu", pool("gpu", 3, 0), pool("cpu", 3, 0)))
	r := newRouter(t, route.Default(), map[string]route.TierConfig{"eu/gpu": sticky(route.AffinityConfig{By: "cookie"})}, f)
	plan := mustPlan(t, r, ask("m"))
	if got := plan.Cookie(at(t, f, "gpu1:1")); !regexp.MustCompile(`^spillway_session=\.\.[\w-]{16};`).MatchString(got) {
		t.Errorf("got %q", got)
	}
	if got := plan.Cookie(at(t, f, "cpu1:1")); got != "" {
		t.Errorf("a pool without affinity: got %q", got)
	}
	none := newRouter(t, route.Default(), nil, f)
	if mustPlan(t, none, ask("m")).Cookie != nil {
		t.Error("no tier has affinity by cookie, but the plan sets one")
	}
}

func TestCookieCannotBeMadeUp(t *testing.T) {
	r, _ := stickyRouter(t, route.AffinityConfig{By: "cookie"}, nil)
	stranger, _ := stickyRouter(t, route.AffinityConfig{By: "cookie"}, nil) // another random secret
	c := newClient(stranger, 1)
	home, _ := c.send(t)
	if strings.Contains(c.cookie, home.URL.Hostname()) {
		t.Errorf("the cookie tells the address: %s", c.cookie)
	}
	stays := 0
	for range 27 {
		p := mustPlan(t, r, c.req)
		l, err := p.Acquire(time.Now(), nil)
		if err != nil {
			t.Fatal(err)
		}
		l.Release(time.Now())
		if l.Instance.Name == home.Name {
			stays++
		}
		if p.Cookie(l.Instance) == "" {
			t.Fatal("the stranger's cookie is not replaced")
		}
	}
	if stays > 3 { // round robin over 27
		t.Errorf("a cookie of another secret was obeyed %d times", stays)
	}
}

func TestCookieSecretIsShared(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("a secret that two gateways share\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("COOKIE_SECRET", "a secret that two gateways share")
	one, _ := stickyRouter(t, route.AffinityConfig{By: "cookie"}, func(c *route.Config) { c.Cookie.SecretFile = file })
	two, _ := stickyRouter(t, route.AffinityConfig{By: "cookie"}, func(c *route.Config) { c.Cookie.SecretEnv = "COOKIE_SECRET" })
	for n := range 20 {
		c := newClient(one, n)
		home, _ := c.send(t)
		c.router = two
		if got, _ := c.send(t); got.Name != home.Name {
			t.Fatalf("got %s, want %s", got.Name, home.Name)
		}
	}
}

func TestMissingSecretWarnsOnceAndLasts(t *testing.T) {
	var log bytes.Buffer
	f := routetest.Fleet(t, region("eu", pool("gpu", 9, 0)))
	tiers := map[string]route.TierConfig{"eu/gpu": sticky(route.AffinityConfig{By: "cookie"})}
	r, err := route.New(route.Default(), tiers, f, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(r, 1)
	home, _ := c.send(t)
	newClient(r, 2).send(t)
	if err := r.Apply(route.Default(), tiers); err != nil {
		t.Fatal(err)
	}
	if got, _ := newClient(r, 3).send(t); got.URL.Host != "gpu2:1" {
		t.Errorf("after a reload the turns begin anew: %s", got.Name)
	}
	if got, set := c.send(t); got != home || set != "" {
		t.Errorf("after a reload: %s, cookie %q; want %s", got.Name, set, home.Name)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, log.String())
	}
}

// FuzzCookie feeds the reader of the session cookie with what clients can send:
// every request runs, and a good cookie among bad ones is found.
func FuzzCookie(f *testing.F) {
	for _, seed := range []string{"", "a=b", "spillway_session", "spillway_session=", "; ;;=", "spillway_session=..", "spillway_session=....;spillway_session=x"} {
		f.Add(seed)
	}
	fl := routetest.Fleet(f, region("eu", pool("gpu", 9, 0)))
	r := newRouter(f, route.Default(), map[string]route.TierConfig{"eu/gpu": sticky(route.AffinityConfig{By: "cookie"})}, fl)
	want := fl.Snapshot().Regions[0].Pools[0].Instances[4]
	good, _, _ := strings.Cut(mustPlan(f, r, ask("m")).Cookie(want), ";")
	f.Fuzz(func(t *testing.T, line string) {
		req := ask("m")
		req.Header = http.Header{"Cookie": {line}}
		for range 2 {
			p, err := r.Plan(context.Background(), req)
			if err != nil {
				t.Fatal(err)
			}
			l, err := p.Acquire(time.Now(), nil)
			if err != nil {
				t.Fatal(err)
			}
			l.Release(time.Now())
			if len(req.Header["Cookie"]) == 2 && !strings.Contains(line, "spillway_session=") && l.Instance != want {
				t.Fatalf("got %s", l.Instance.Name)
			}
			req.Header["Cookie"] = []string{line, good}
		}
	})
}

func BenchmarkPlanWithCookie(b *testing.B) {
	f := routetest.Fleet(b, region("eu", pool("gpu", 8, 0), pool("cpu", 8, 0)))
	r := newRouter(b, route.Default(), map[string]route.TierConfig{"eu/gpu": sticky(route.AffinityConfig{By: "cookie"})}, f)
	req := ask("m")
	cookie, _, _ := strings.Cut(mustPlan(b, r, req).Cookie(at(b, f, "gpu5:1")), ";")
	req.Header = http.Header{"Cookie": {"theme=dark; " + cookie}}
	at(b, f, "cpu0:1").Live.SetDraining(true)
	b.ReportAllocs()
	for b.Loop() {
		p, err := r.Plan(context.Background(), req)
		if err != nil {
			b.Fatal(err)
		}
		l, err := p.Acquire(time.Now(), nil)
		if err != nil {
			b.Fatal(err)
		}
		l.Release(time.Now())
	}
}
