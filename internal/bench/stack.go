package bench

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spillway/spillway/internal/app"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/fleet"
)

// model is the name that the scenarios' engines serve.
const model = "sim"

// engines is a set of simulated model servers, each a process of its own.
type engines struct {
	all []*process
	at  []string // host:port, by index
}

// startEngines starts n engines of the given binary with extra flags.
func startEngines(ctx context.Context, binary string, n int, stderr io.Writer, flags ...string) (*engines, error) {
	e := new(engines)
	for i := range n {
		addr, err := freeAddr()
		if err != nil {
			e.stop()
			return nil, err
		}
		args := append([]string{"engine", "--listen", addr, "--model", model}, flags...)
		p := &process{name: fmt.Sprintf("engine %d", i+1), binary: binary, args: args, errors: stderr}
		if err := p.start(ctx, "listening"); err != nil {
			e.stop()
			return nil, err
		}
		e.all, e.at = append(e.all, p), append(e.at, addr)
	}
	return e, nil
}

// restart starts an engine again where it was.
func (e *engines) restart(ctx context.Context, i int) error { return e.all[i].start(ctx, "listening") }

// stop ends all of them.
func (e *engines) stop() {
	for _, p := range e.all {
		p.stop()
	}
}

// urls are the engines' base URLs.
func (e *engines) urls() []string {
	out := make([]string, len(e.at))
	for i, a := range e.at {
		out[i] = "http://" + a
	}
	return out
}

// metrics are the metrics URLs of the engines but those that are left out: a
// killed engine counts from zero again.
func (e *engines) metrics(except ...int) []string {
	var out []string
next:
	for i, u := range e.urls() {
		for _, x := range except {
			if i == x {
				continue next
			}
		}
		out = append(out, u+"/metrics")
	}
	return out
}

// inProcess is a gateway inside this process.
type inProcess struct {
	url    string
	cancel context.CancelFunc
	done   chan error
}

// startGateway runs a gateway on free loopback ports with the given regions, each
// a name and the addresses of its one pool's instances.
func startGateway(ctx context.Context, regions []regionOf, stderr io.Writer) (*inProcess, error) {
	file := config.Default()
	file.API.Listen, file.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0"
	file.Usage.AccessLog, file.Usage.Ledger.Enabled = "off", false
	file.Gateway.NameInstance = true // the load generator counts streams by instance
	file.Telemetry.Log.Level = "error"
	file.Route.Policy = "least_request"
	for _, r := range regions {
		pool := config.DefaultPool()
		pool.Name, pool.Models = "gpu", config.Models{model: model}
		for _, a := range r.addrs {
			pool.Instances = append(pool.Instances, config.Instance{Target: fleet.Target{URL: "http://" + a}})
		}
		region := config.DefaultRegion()
		region.Name, region.Pools = r.name, []config.Pool{pool}
		file.Fleet.Regions = append(file.Fleet.Regions, region)
	}
	if err := file.Validate(); err != nil {
		return nil, err
	}
	a, err := app.New(file, app.Options{Version: "demo", Stdout: io.Discard, Stderr: stderr})
	if err != nil {
		return nil, err
	}
	l, err := a.Listen(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	g := &inProcess{url: "http://" + l.API.Addr().String(), cancel: cancel, done: make(chan error, 1)}
	go func() { g.done <- a.Run(ctx, l, nil) }() // ends in stop
	return g, waitReady(ctx, g.url+"/readyz")
}

// regionOf is a region with one pool.
type regionOf struct {
	name  string
	addrs []string
}

// stop drains the gateway and waits for its end.
func (g *inProcess) stop() error {
	g.cancel()
	http.DefaultClient.CloseIdleConnections()
	return <-g.done
}

// instanceName is how the gateway names an instance of a region's pool.
func instanceName(region, addr string) string {
	return strings.Join([]string{region, "gpu", addr}, "/")
}
