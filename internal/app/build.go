package app

import (
	"context"
	"net"
	"net/http"
	"net/url"

	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/health"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/upstream"
)

// eachPool calls f for every configured pool with its full name.
func eachPool(file *config.File, f func(name string, p *config.Pool)) {
	for i := range file.Fleet.Regions {
		r := &file.Fleet.Regions[i]
		for j := range r.Pools {
			f(r.Name+"/"+r.Pools[j].Name, &r.Pools[j])
		}
	}
}

// layout is the configured part of the fleet, with what sources have found for its
// pools already.
func layout(file *config.File, found map[string][]fleet.Target) fleet.Layout {
	var l fleet.Layout
	for _, r := range file.Fleet.Regions {
		rl := fleet.RegionLayout{Name: r.Name, Weight: r.Weight, Backup: r.Backup}
		for _, p := range r.Pools {
			pl := fleet.PoolLayout{
				Name: p.Name, Weight: p.Weight, Backup: p.Backup, Models: p.Models, MaxInFlight: p.MaxInFlight, SlowStart: p.SlowStart,
				Provider: p.Provider, Standby: p.Standby, Discovered: sourceSettings(&p) != nil, Found: found[r.Name+"/"+p.Name],
			}
			for _, name := range p.Surfaces {
				if s, ok := inference.ParseSurface(name); ok {
					pl.Surfaces = append(pl.Surfaces, s)
				}
			}
			for _, t := range p.Instances {
				pl.Static = append(pl.Static, t.Target)
			}
			rl.Pools = append(rl.Pools, pl)
		}
		l.Regions = append(l.Regions, rl)
	}
	return l
}

// tiers maps regions and pools to how their members are chosen.
func tiers(file *config.File) map[string]route.TierConfig {
	m := make(map[string]route.TierConfig)
	for _, r := range file.Fleet.Regions {
		m[r.Name] = r.TierConfig
	}
	eachPool(file, func(name string, p *config.Pool) { m[name] = p.TierConfig })
	return m
}

// upstreams maps pools to how their instances are reached.
func upstreams(file *config.File) map[string]upstream.Config {
	m := make(map[string]upstream.Config)
	eachPool(file, func(name string, p *config.Pool) { m[name] = p.Upstream })
	return m
}

// gatewayConfig adds the pools that are hedged.
func gatewayConfig(file *config.File) gateway.Config {
	cfg := file.Gateway
	eachPool(file, func(name string, p *config.Pool) {
		if p.Hedge {
			cfg.Hedge.Pools = append(cfg.Hedge.Pools[:len(cfg.Hedge.Pools):len(cfg.Hedge.Pools)], name)
		}
	})
	return cfg
}

// healthPools maps pools to how their instances are judged, with a transport of
// their own for each.
func healthPools(file *config.File) (map[string]health.Pool, map[string]*http.Transport, error) {
	pools, asides := make(map[string]health.Pool), make(map[string]*http.Transport)
	var failed error
	eachPool(file, func(name string, p *config.Pool) {
		transport, header, err := upstream.Aside(p.Upstream)
		if err != nil {
			failed = err
			return
		}
		asides[name] = transport
		pools[name] = health.Pool{Config: p.Health, Metrics: p.Metrics, LearnModels: p.Models == nil, Transport: transport, Header: header, Dial: dialProxy(p.Upstream.Proxy)}
	})
	return pools, asides, failed
}

// dialProxy returns what a tcp check connects with in a pool whose instances are
// reached through an outbound proxy: whatever the instance, the proxy. It is nil
// without one.
func dialProxy(proxy string) func(ctx context.Context, network, address string) (net.Conn, error) {
	u, err := url.Parse(proxy)
	if proxy == "" || err != nil {
		return nil
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	address := net.JoinHostPort(u.Hostname(), port)
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
}
