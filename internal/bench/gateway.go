package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/admin"
)

// maxAnswer bounds what is read of an operator's page, in bytes.
const maxAnswer = 16 << 20

// settleTime is how long counters, goroutines and descriptors are given to come
// back to where they were.
const settleTime = 10 * time.Second

// gatewayProcess is a gateway that is a process of its own.
type gatewayProcess struct {
	process
	url       string // for clients
	admin     string // for operators
	config    string // the file
	accessLog string
	client    *http.Client
}

// newPageClient reads the pages of operators.
func newPageClient() *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
}

// list is a key with a list of strings, in YAML.
func list(key string, values []string) string {
	b, _ := json.Marshal(values) // strings always marshal
	return fmt.Sprintf("%s: %s", key, b)
}

// startGatewayProcess starts a gateway whose one pool finds its instances as the
// given line of YAML says.
func startGatewayProcess(ctx context.Context, r *rig, instances string) (*gatewayProcess, error) {
	g, err := newGatewayProcess(r)
	if err != nil {
		return nil, err
	}
	if err := g.configure(instances, 600); err != nil {
		return nil, err
	}
	if err := g.launch(ctx); err != nil {
		return nil, err
	}
	return g, nil
}

// newGatewayProcess is a gateway with addresses and without a configuration.
func newGatewayProcess(r *rig) (*gatewayProcess, error) {
	var at [2]string
	for i := range at {
		var err error
		if at[i], err = freeAddr(); err != nil {
			return nil, err
		}
	}
	g := &gatewayProcess{
		url: "http://" + at[0], admin: "http://" + at[1], config: r.path("spillway.yaml"), accessLog: r.path("access.log"),
		client: newPageClient(),
	}
	g.process = process{name: "gateway", binary: r.Binary, args: []string{"serve", "-c", g.config, "--listen", at[0], "--admin-listen", at[1]}, errors: r.Err}
	return g, nil
}

// launch starts the gateway and waits until it is ready.
func (g *gatewayProcess) launch(ctx context.Context) error {
	if err := g.start(ctx, ""); err != nil {
		return err
	}
	if err := waitReady(ctx, g.url+"/readyz"); err != nil {
		g.stop()
		return err
	}
	if !g.running() { // somebody else answers there
		return fmt.Errorf("start the gateway: it ended at once")
	}
	return nil
}

// configure writes the configuration file, all at once. timeout is in seconds:
// what reloads change.
func (g *gatewayProcess) configure(instances string, timeout int) error {
	text := fmt.Sprintf(`usage: {access_log: %q, ledger: {enabled: false}} # whose database would be open only afterwards
telemetry: {log: {level: error}}
gateway: {timeout: %ds, name_instance: true}
store: {directory: %q}
fleet:
  regions:
    - name: eu
      pools:
        - name: gpu
          policy: least_request
          models: [%s]
          %s
`, g.accessLog, timeout, filepath.Join(filepath.Dir(g.config), "state"), model, instances)
	return replaceFile(g.config, []byte(text))
}

// replaceFile writes a file beside its place and moves it there.
func replaceFile(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// get reads one page of a gateway or an engine.
func (g *gatewayProcess) get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := g.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: status %d", url, res.StatusCode)
	}
	return io.ReadAll(io.LimitReader(res.Body, maxAnswer))
}

// samples are metrics in Prometheus' text form, by name with labels.
type samples map[string]float64

// metrics reads the metrics of a gateway or an engine.
func (g *gatewayProcess) metrics(ctx context.Context, base string) (samples, error) {
	text, err := g.get(ctx, base+"/metrics")
	if err != nil {
		return nil, err
	}
	m := make(samples)
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		i := strings.LastIndexByte(s.Text(), ' ')
		if i < 0 || s.Text()[0] == '#' {
			continue
		}
		if v, err := strconv.ParseFloat(s.Text()[i+1:], 64); err == nil {
			m[s.Text()[:i]] = v
		}
	}
	return m, nil
}

// sum adds the samples of a metric over its labels.
func (m samples) sum(name string) float64 {
	total := 0.0
	for k, v := range m {
		if k == name || strings.HasPrefix(k, name+"{") {
			total += v
		}
	}
	return total
}

// footprint is what a process holds.
type footprint struct {
	rss               float64 // bytes
	goroutines, files float64
	idle              float64 // idle connections to instances, which hold a descriptor each
	processor         float64 // seconds
}

// footprint reads what the gateway holds now.
func (g *gatewayProcess) footprint(ctx context.Context) (footprint, error) {
	m, err := g.metrics(ctx, g.admin)
	return footprint{
		rss: m["process_resident_memory_bytes"], goroutines: m["go_goroutines"], files: m["process_open_fds"],
		idle: m["spillway_upstream_idle_connections"], processor: m["process_cpu_seconds_total"],
	}, err
}

// fleet reads the gateway's picture of its instances.
func (g *gatewayProcess) fleet(ctx context.Context) (p admin.Picture, err error) {
	text, err := g.get(ctx, g.admin+"/admin/fleet")
	if err != nil {
		return p, err
	}
	return p, json.Unmarshal(text, &p)
}

// held is the sum of all counters of all tiers: requests in flight and prompt
// tokens outstanding. Each is checked for itself, so that a counter below zero
// does not hide one above it.
func (g *gatewayProcess) held(ctx context.Context) (int64, error) {
	p, err := g.fleet(ctx)
	if err != nil {
		return 0, err
	}
	var n int64
	add := func(node admin.Node) {
		for _, v := range []int64{node.InFlight, node.PromptTokens} {
			n += max(v, -v)
		}
	}
	for _, r := range p.Regions {
		add(r.Node)
		for _, pool := range r.Pools {
			add(pool.Node)
			for _, i := range pool.Instances {
				add(i.Node)
			}
		}
	}
	return n, nil
}

// settled polls until ok, or until settleTime is over. It is not an error that
// ok was never true: the verdict says so.
func settled(ctx context.Context, ok func() (bool, error)) error {
	for deadline := time.Now().Add(settleTime); ; {
		done, err := ok()
		if err != nil || done || time.Now().After(deadline) {
			return err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// expectZero notes that every counter of the fleet must be zero.
func (r *rig) expectZero(ctx context.Context) error {
	var held int64
	err := settled(ctx, func() (bool, error) {
		var err error
		held, err = r.gateway.held(ctx)
		return held == 0, err
	})
	r.expect("requests and prompt tokens counted when nothing runs", float64(held), Exactly, 0, "")
	return err
}
