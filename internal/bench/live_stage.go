package bench

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

// liveStage is what one run is played on: engines, and what stands before them.
type liveStage struct {
	*rig
	proxy *proxyProcess
	urls  []string // where clients send to
}

// liveKey is a tenant's key. Every key is of the highest class: a request lowers it
// by its header.
func liveKey(tenant string) string { return "sk-bench-" + tenant }

// liveKeys is the keys file of the tenants.
func liveKeys(tenants []load.Tenant) string {
	var b strings.Builder
	for _, t := range tenants {
		fmt.Fprintf(&b, "%x %s %s\n", sha256.Sum256([]byte(liveKey(t.Name))), t.Name, inference.VIP)
	}
	return b.String()
}

// stage starts fresh engines and the trial's system.
func (l *liveBench) stage(ctx context.Context, t *liveTrial, tenants []load.Tenant) (s *liveStage, err error) {
	s = &liveStage{rig: &rig{Options: Options{Seed: t.seed, Binary: l.Binary, Out: l.Out, Err: l.Err}, result: new(Result)}}
	if s.dir, err = os.MkdirTemp(l.dir, t.system+"-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.end()
		}
	}()
	// Prompts share nothing: a prefix cache would only cost processor time.
	flags := append(slices.Clone(l.Args), "--prefix-cache=false")
	if s.engines, err = startEngines(ctx, l.Binary, l.Engines, l.Err, flags...); err != nil {
		return s, err
	}
	switch t.system {
	case SystemDirect:
		s.urls = s.engines.urls()
	case SystemNginx, SystemHAProxy:
		if s.proxy, err = startProxy(ctx, s.rig, t.system, t.proxy()); err == nil {
			s.urls = []string{s.proxy.url}
		}
	default:
		if err = s.startGateway(ctx, t, tenants); err == nil {
			s.urls = []string{s.gateway.url}
		}
	}
	return s, err
}

// admission is what the gateway is set to.
func (t *trial) admission() admission.Config {
	return t.Admission(t.limiter(t.system), max(1, t.tuned.static))
}

// proxy is what a proxy is set to.
func (t *trial) proxy() Proxy {
	if t.system == SystemNginx {
		return t.tuned.nginx
	}
	return t.tuned.haproxy
}

// startGateway starts the gateway with the trial's admission.
func (s *liveStage) startGateway(ctx context.Context, t *liveTrial, tenants []load.Tenant) error {
	g, err := newGatewayProcess(s.rig)
	if err != nil {
		return err
	}
	text := gatewayText(t.admission(), s.dir, s.engines.urls())
	err = os.WriteFile(g.config, []byte(text), 0o600)
	if err == nil {
		err = os.WriteFile(s.path("keys"), []byte(liveKeys(tenants)), 0o600)
	}
	if err == nil {
		err = g.launch(ctx)
	}
	if err == nil {
		s.gateway = g
	}
	return err
}

// gatewayText is the gateway's configuration: what a file says that names the
// engines, the keys, the limiter and the objectives, without an access log. dir
// holds what the gateway keeps.
func gatewayText(a admission.Config, dir string, engines []string) string {
	class := func(c admission.Class) string {
		return fmt.Sprintf("{weight: %g, ttft: %v, tpot: %v}", c.Weight, c.TTFT, c.TPOT)
	}
	return fmt.Sprintf(`identity: {keys_file: %q}
admission:
  limit: %s
  static_limit: %d
  classes:
    vip: %s
    normal: %s
    batch: %s
usage: {access_log: "off"}
telemetry: {log: {level: error}}
store: {directory: %q}
fleet:
  regions:
    - name: r
      pools:
        - name: p
          models: [%s]
          %s
`, filepath.Join(dir, "keys"), a.Limit, a.StaticLimit, class(a.Classes.VIP), class(a.Classes.Normal), class(a.Classes.Batch),
		filepath.Join(dir, "state"), model, list("instances", engines))
}

// end ends every process and removes the files of the run.
func (s *liveStage) end() {
	if s.proxy != nil {
		s.proxy.stop()
	}
	s.stop()
	_ = os.RemoveAll(s.dir) // the whole bench's folder goes later
}

// leaks lists what is still counted somewhere when nothing runs any more. Things
// are given a while to settle.
func (s *liveStage) leaks(ctx context.Context) (found []string, err error) {
	err = settled(ctx, func() (bool, error) {
		var problems [2]error
		found, problems[0] = s.atEngines(ctx)
		if s.gateway != nil {
			var more []string
			more, problems[1] = s.atGateway(ctx)
			found = append(found, more...)
		}
		return len(found) == 0, errors.Join(problems[:]...)
	})
	return found, err
}

// refusals says why the gateway has refused attempts, warm-up and drain included.
func (s *liveStage) refusals(ctx context.Context) ([]string, error) {
	if s.gateway == nil {
		return nil, nil
	}
	m, err := s.gateway.metrics(ctx, s.gateway.admin)
	if err != nil {
		return nil, err
	}
	const name = "spillway_admission_refused_total"
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if labels, ok := strings.CutPrefix(k, name); ok && m[k] > 0 {
			parts = append(parts, fmt.Sprintf("%s %g", labels, m[k]))
		}
	}
	if len(parts) == 0 {
		return nil, nil
	}
	return []string{"refused by the gateway in the whole run: " + strings.Join(parts, ", ")}, nil
}

// remaining notes a counter that is not zero.
func remaining(found []string, n float64, format string, args ...any) []string {
	if n == 0 {
		return found
	}
	return append(found, fmt.Sprintf("%g %s", n, fmt.Sprintf(format, args...)))
}

// atEngines lists the requests that engines still have.
func (s *liveStage) atEngines(ctx context.Context) (found []string, err error) {
	reader := cmp.Or(s.gateway, &gatewayProcess{client: newPageClient()})
	for i, u := range s.engines.urls() {
		m, err := reader.metrics(ctx, u)
		if err != nil {
			return nil, err
		}
		found = remaining(found, m.sum("vllm:num_requests_running")+m.sum("vllm:num_requests_waiting"), "requests at engine %d", i+1)
	}
	return found, nil
}

// atGateway lists what the gateway still counts.
func (s *liveStage) atGateway(ctx context.Context) (found []string, err error) {
	p, err := s.gateway.fleet(ctx)
	if err != nil {
		return nil, err
	}
	note := func(n admin.Node, tier string) {
		found = remaining(found, float64(n.InFlight), "in flight of %s %s", tier, n.Name)
		found = remaining(found, float64(n.PromptTokens), "prompt tokens of %s %s", tier, n.Name)
	}
	for _, r := range p.Regions {
		note(r.Node, "region")
		for _, pool := range r.Pools {
			note(pool.Node, "pool")
			for _, i := range pool.Instances {
				note(i.Node, "instance")
			}
		}
	}
	m, err := s.gateway.metrics(ctx, s.gateway.admin)
	for _, name := range []string{"spillway_admission_waiting", "spillway_admission_waiting_bytes", "spillway_admission_held_tokens"} {
		found = remaining(found, m.sum(name), "in %s", name)
	}
	return found, err
}
