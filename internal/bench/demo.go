package bench

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spillway/spillway/internal/load"
)

// excerpt is the trace that ships in the binary.
//
//go:embed trace/azure-2023-conv-excerpt.csv.gz trace/README.md
var excerpt embed.FS

// excerptPath is the trace's place in excerpt.
const excerptPath = "trace/azure-2023-conv-excerpt.csv.gz"

// Demo is the scenario that anyone can run: four engines in two regions, one of
// them killed and restored, first without and then with the gateway.
type Demo struct {
	Fast   bool
	Trace  string // a whole trace file instead of the excerpt
	Seed   uint64
	Binary string // this program, to start engines from
	Out    io.Writer
	Err    io.Writer
	Show   load.Progress
}

// Constants of the demo. It replays the trace from demoStart on, where its rate
// is steady; rate and mean lengths are those of the 200 s behind that instant.
const (
	demoEngines = 4
	demoMaxSeqs = 64
	demoLoad    = 0.8
	demoStart   = 120 * time.Second
	traceRate   = 5.435  // requests a second at native speed
	meanPrompt  = 1135.0 // tokens
	meanOutput  = 255.0
)

// demoCapacity is what the demo's engines serve together, in requests a second:
// the bound of the batching law with the engine's default steps and demoMaxSeqs
// sequences. A request costs its prefill and its share of meanOutput steps.
func demoCapacity() float64 {
	const base, perSeq, perPrompt = 0.008, 0.0001, 0.00004 // seconds, the engine's defaults
	perToken := (base + perSeq*demoMaxSeqs) / demoMaxSeqs
	return demoEngines / (meanPrompt*perPrompt + meanOutput*perToken)
}

// Run plays the demo and returns both systems' figures in one report.
func (d *Demo) Run(ctx context.Context) (*load.Report, error) {
	length := 35 * time.Second
	if d.Fast {
		length = 9 * time.Second
	}
	report := load.NewReport("demo", d.Seed)
	fmt.Fprintf(d.Out, "4 simulated model servers in two regions, %.0f%% of their capacity (%.1f requests/s), trace azure-2023-conv;\n"+
		"one server is killed (SIGKILL) at %v and restored at %v.\n", demoLoad*100, demoLoad*demoCapacity(), d.killAt(length), d.restoreAt(length))
	for _, through := range []bool{false, true} {
		name := "direct"
		if through {
			name = "spillway"
		}
		fmt.Fprintf(d.Out, "\n%s: %v\n", map[bool]string{false: "straight at the servers, blind round robin", true: "through Spillway"}[through], length)
		s, err := d.play(ctx, name, through, length)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		report.Add(s)
	}
	return report, nil
}

// killAt and restoreAt are the instants of the fault.
func (*Demo) killAt(length time.Duration) time.Duration    { return length * 35 / 100 }
func (*Demo) restoreAt(length time.Duration) time.Duration { return length * 65 / 100 }

// play runs one system from fresh engines to its figures.
func (d *Demo) play(ctx context.Context, name string, through bool, length time.Duration) (s load.System, err error) {
	e, err := startEngines(ctx, d.Binary, demoEngines, d.Err, "--max-seqs", fmt.Sprint(demoMaxSeqs))
	if err != nil {
		return s, err
	}
	defer e.stop()
	cfg := d.load(name, e, length)
	const victim = 1
	victimName := e.at[victim]
	if through {
		regions := []regionOf{{"eu", e.at[:2]}, {"us", e.at[2:]}}
		g, err := startGateway(ctx, regions, d.Err)
		if err != nil {
			return s, err
		}
		defer func() { err = errors.Join(err, g.stop()) }()
		cfg.Target.BaseURLs = []string{g.url}
		victimName = instanceName("eu", e.at[victim])
	}
	opts := load.Options{Progress: d.Show, Hooks: d.faults(e, victim, victimName, length)}
	if d.Trace == "" {
		opts.FS = fs.FS(excerpt)
	}
	gen, err := load.New(cfg, opts)
	if err != nil {
		return s, err
	}
	return gen.Run(ctx)
}

// load is what is sent.
func (d *Demo) load(name string, e *engines, length time.Duration) load.Config {
	cfg := load.Default()
	cfg.Scenario, cfg.Seed, cfg.Load = "demo", d.Seed, demoLoad
	cfg.Target.Name, cfg.Target.Model, cfg.Target.BaseURLs = name, model, e.urls()
	cfg.Schedule.Trace.Path, cfg.Schedule.Trace.Format = excerptPath, "azure-2023"
	if d.Trace != "" {
		cfg.Schedule.Trace.Path = d.Trace
	}
	cfg.Schedule.Trace.Speed = demoLoad * demoCapacity() / traceRate
	cfg.Schedule.Trace.Start = demoStart
	cfg.Schedule.Duration = length
	cfg.Client.Timeout = 60 * time.Second
	cfg.EngineMetrics = e.metrics(1)
	return cfg
}

// faults kills the victim and restores it.
func (d *Demo) faults(e *engines, victim int, name string, length time.Duration) []load.Hook {
	return []load.Hook{
		{At: d.killAt(length), Name: "kill", Do: func(_ context.Context, live *load.Live) error {
			_, err := live.Cut(name, 50*time.Millisecond, e.all[victim].kill)
			return err
		}},
		{At: d.restoreAt(length), Name: "restore", Do: func(ctx context.Context, _ *load.Live) error {
			return e.restart(ctx, victim)
		}},
	}
}

// Binary is the path of the running program.
func Binary() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	return path, nil
}
