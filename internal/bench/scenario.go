package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/load"
)

// Scenario is a fault, or a mass of work, that the gateway is put through. The
// gateway is a process of its own there, so that its memory, descriptors and
// processor time are nobody else's.
type Scenario struct {
	Name  string
	About string
	// Duration is the default length of its load; 0 where Count bounds it.
	Duration time.Duration
	// Count is the default number of streams, trials or reloads.
	Count int
	// Counted says what Count counts; "" where it has no effect.
	Counted string
	// Sources are the registries that it can find instances in; nil where it has none.
	Sources []string
	// Apart are the sources that need RunApart.
	Apart []string

	play func(context.Context, *rig) error
}

// Scenarios lists the scenarios in the order in which they are explained.
func Scenarios() []Scenario {
	return []Scenario{
		{Name: "kill", About: "one of three instances is killed at 1,000 requests/s and restored", Duration: 20 * time.Second, play: playKill},
		{Name: "hang", About: "one of three instances is stopped (SIGSTOP) under streams, then under short answers; a long prefill is not taken for a hang", Duration: 20 * time.Second, play: playHang},
		{Name: "streams", About: "many streams of 20 events/s at once, and idle connections: memory, goroutines, descriptors", Duration: 30 * time.Second, Count: 1000, Counted: "concurrent streams", play: playStreams},
		{Name: "reload", About: "configuration reloads and an instance list that flaps every second, under load", Duration: 20 * time.Second, Count: 10, Counted: "reloads", play: playReload},
		{Name: "leave", About: "clients that leave: before the first token, in mid-stream, in silence, with an answer pending", Count: 200, Counted: "clients for each way to leave", play: playLeave},
		{Name: "herd", About: "a thousand clients ask the same question at once; one leaves, the server is killed: one generation, or two", Count: 1000, Counted: "clients", play: playHerd},
		{Name: "tenants", About: "the 27 clients of the arena trace, each with a key and a limit of its own: everybody gets what is configured", Duration: 60 * time.Second, play: playTenants},
		{Name: "refunds", About: "a third of the clients of streams leave: ledger, access log and limits agree to the token", Count: 1000, Counted: "streams", play: playRefunds},
		{Name: "canary", About: "one answer of twenty of an experiment's arm is an error: it rolls back by itself", Duration: 60 * time.Second, play: playCanary},
		{Name: "discovery", About: "a hundred instances come and go in a real registry, half of them each second, under load", Duration: 60 * time.Second, Count: 100, Counted: "instances", Sources: DiscoverySources(), Apart: []string{sourceKubernetes}, play: playDiscovery},
		{Name: "soak", About: "fault-free streams, none of which may break", Count: 100_000, Counted: "streams", play: playSoak},
	}
}

// CacheScenario is what a hit costs. It is the part of `bench cache` that runs in
// real time.
func CacheScenario() Scenario {
	return Scenario{Name: "cache", About: "what a hit costs at the client: memory, Redis, SQL, beside the engine and a bare GET of Redis", Duration: 3 * time.Second, play: playHits}
}

// Options are what a scenario is run with.
type Options struct {
	Duration time.Duration // 0 is the scenario's own
	Count    int           // 0 is the scenario's own
	Source   string        // "" is the scenario's first
	Share    float64       // of the scenario's own rates, for machines that are slower; 0 is all
	Seed     uint64
	Binary   string // this program, to start engines and the gateway from
	Out      io.Writer
	Err      io.Writer
	Show     load.Progress // nil shows nothing
}

// Relation is how a value and its limit must stand.
type Relation string

// The relations.
const (
	AtMost  Relation = "<="
	AtLeast Relation = ">="
	Exactly Relation = "="
)

// Verdict is one requirement and what became of it.
type Verdict struct {
	Name     string   `json:"name"`
	Value    float64  `json:"value"`
	Relation Relation `json:"relation"`
	Limit    float64  `json:"limit"`
	Unit     string   `json:"unit,omitempty"`
	OK       bool     `json:"ok"`
}

// String is the verdict on one line.
func (v Verdict) String() string {
	result := "ok"
	if !v.OK {
		result = "MISSED"
	}
	unit := ""
	if v.Unit != "" {
		unit = " " + v.Unit
	}
	return fmt.Sprintf("%-62s %10.6g%s (%s %.6g)  %s", v.Name, v.Value, unit, v.Relation, v.Limit, result)
}

// Verdicts are the requirements of a scenario and what became of them.
type Verdicts []Verdict

// Missed is the number of requirements that were not met.
func (v Verdicts) Missed() int {
	n := 0
	for _, one := range v {
		if !one.OK {
			n++
		}
	}
	return n
}

// write prints them, one a line.
func (v Verdicts) write(w io.Writer) error {
	for _, one := range v {
		if _, err := fmt.Fprintln(w, one); err != nil {
			return err
		}
	}
	return nil
}

// writeJSON writes a value as one indented JSON object.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// Result is a report with the verdicts on what it shows.
type Result struct {
	*load.Report
	Verdicts Verdicts `json:"verdicts"`
}

// Missed is the number of requirements that were not met.
func (r *Result) Missed() int { return r.Verdicts.Missed() }

// Write prints the report and the verdicts.
func (r *Result) Write(w io.Writer) error {
	if len(r.Systems) > 0 {
		if err := r.WriteTable(w); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	return r.Verdicts.write(w)
}

// WriteJSON writes report and verdicts as one indented JSON object.
func (r *Result) WriteJSON(w io.Writer) error { return writeJSON(w, r) }

// Run plays the scenario. The error says that it could not be played; what the
// gateway did wrong stands in the verdicts.
func (s Scenario) Run(ctx context.Context, opts Options) (*Result, error) {
	if opts.Duration == 0 {
		opts.Duration = s.Duration
	}
	if opts.Count == 0 {
		opts.Count = s.Count
	}
	dir, err := os.MkdirTemp("", "spillway-bench-")
	if err != nil {
		return nil, err
	}
	r := &rig{Options: opts, dir: dir, result: &Result{Report: load.NewReport(s.Name, opts.Seed), Verdicts: []Verdict{}}}
	defer os.RemoveAll(dir)
	defer r.stop()
	if err := s.play(ctx, r); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	return r.result, nil
}

// rig is the gateway, its engines and what was found about them. The scenario's
// goroutine alone uses it.
type rig struct {
	Options
	dir     string
	engines *engines
	gateway *gatewayProcess
	result  *Result
}

// stop ends every process.
func (r *rig) stop() {
	if r.gateway != nil {
		r.gateway.stop()
		r.gateway = nil
	}
	if r.engines != nil {
		r.engines.stop()
		r.engines = nil
	}
	http.DefaultClient.CloseIdleConnections()
}

// start runs n engines with the given flags, and a gateway whose one pool has
// them all.
func (r *rig) start(ctx context.Context, n int, flags ...string) error {
	r.stop()
	var err error
	if r.engines, err = startEngines(ctx, r.Binary, n, r.Err, flags...); err != nil {
		return err
	}
	r.gateway, err = startGatewayProcess(ctx, r, list("instances", r.engines.urls()))
	return err
}

// say tells what happens now.
func (r *rig) say(format string, args ...any) { fmt.Fprintf(r.Out, format+"\n", args...) }

// expect notes a requirement and its value.
func (r *rig) expect(name string, value float64, rel Relation, limit float64, unit string) {
	v := Verdict{Name: name, Value: value, Relation: rel, Limit: limit, Unit: unit}
	switch rel {
	case AtMost:
		v.OK = value <= limit
	case AtLeast:
		v.OK = value >= limit
	default:
		v.OK = value == limit
	}
	r.result.Verdicts = append(r.result.Verdicts, v)
}

// config is a load against the gateway of the given length.
func (r *rig) config(name string, rate float64, length time.Duration) load.Config {
	cfg := load.Default()
	cfg.Scenario, cfg.Seed = r.result.Scenario, r.Seed
	cfg.Target.Name, cfg.Target.Model, cfg.Target.BaseURLs = name, model, []string{r.gateway.url}
	cfg.Schedule.Rate, cfg.Schedule.Duration = rate*cmp.Or(r.Share, 1), length
	cfg.Client.Timeout = 60 * time.Second
	return cfg
}

// job is one load of several that run at the same time.
type job struct {
	cfg   load.Config
	hooks []load.Hook
	files fs.FS // that have its trace; nil are those of the system
}

// play runs loads at the same time, adds them to the report and returns them in
// the order of the jobs. The first one's progress is shown.
func (r *rig) play(ctx context.Context, jobs ...job) ([]load.System, error) {
	systems, errs := make([]load.System, len(jobs)), make([]error, len(jobs))
	var wg sync.WaitGroup
	for i, j := range jobs {
		opts := load.Options{Hooks: j.hooks, FS: j.files}
		if i == 0 {
			opts.Progress = r.Show
		}
		gen, err := load.New(j.cfg, opts)
		if err != nil {
			return nil, errors.Join(err, ctx.Err())
		}
		wg.Go(func() { systems[i], errs[i] = gen.Run(ctx) })
	}
	wg.Wait()
	for _, s := range systems {
		r.result.Add(s)
	}
	return systems, errors.Join(errs...)
}

// failures is the number of a system's rows that were not answered, but for
// those with the given codes. An answer that ended early without saying so is
// one of them.
func failures(s load.System, except ...string) int64 {
	n := s.Truncated
next:
	for code, count := range s.Errors {
		for _, x := range except {
			if code == x {
				continue next
			}
		}
		n += count
	}
	return n
}

// path is a file of the scenario.
func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }
