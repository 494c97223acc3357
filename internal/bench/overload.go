package bench

import (
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/engine"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

// Overload is a comparison under more load than can be served: systems in front of
// the same engines, each given the same requests at the same instants. [Virtual]
// plays it in virtual time, [Live] with processes over HTTP; both judge it alike.
//
// Capacity is the optimum of the engines' parameters for the trace's means (see
// [Optimum]). At every load the classes vip and batch bring 0.2 of it each, and
// normal the rest.
type Overload struct {
	Loads    []float64     // multiples of the capacity
	Systems  []string      // see [OverloadSystems]
	Limiter  string        // of the system spillway: a value of admission.limit
	Engines  int           // in front of which each system stands
	Speeds   []float64     // of the engines; nil is 1 each. In virtual time only
	Duration time.Duration // of the load, warm-up included
	Warmup   time.Duration // 0 is 60 s, 20 s where Duration is under two minutes
	Trace    string        // a name in the data folder, [ExcerptTrace], or a file
	Args     []string      // flags of `spillway engine` that shape its batching
	Retries  int           // of a client, as the SDKs do
	Seeds    int           // runs of each system at each load
	Seed     uint64        // the first run's; the next ones count up
	Scenario string        // see [OverloadScenarios]; "" is the comparison itself
	Short    bool          // scenarios play their most telling load alone, with fewer seeds
	Trail    io.Writer     // is told the limits every 5 s of virtual time; nil is not

	Binary string // this program, to start engines and gateways from
	Out    io.Writer
	Err    io.Writer
	Show   load.Progress // nil shows nothing
}

// The systems that can be compared. Those that begin with spillway- are the same
// gateway with another limiter.
const (
	SystemDirect   = "direct"
	SystemNginx    = "nginx"
	SystemHAProxy  = "haproxy"
	SystemSpillway = "spillway"
)

// OverloadSystems lists the systems in the order in which they run.
func OverloadSystems() []string {
	return []string{
		SystemDirect, SystemNginx, SystemHAProxy, "spillway-" + admission.LimitStatic, "spillway-" + admission.LimitGradient,
		"spillway-" + admission.LimitGradient2, "spillway-" + admission.LimitAIMD, SystemSpillway,
	}
}

// ExcerptTrace names the trace that ships in the binary.
const ExcerptTrace = "azure-2023-conv-excerpt"

// arenaTrace is the trace whose tenants are unequal.
const (
	arenaTrace = "arena-27clients"
	arenaPath  = "trace/" + arenaTrace + ".csv.gz"
)

// arena is the copy of it that ships in the binary.
//
//go:embed trace/arena-27clients.csv.gz
var arena embed.FS

// The terms of every overload run.
const (
	sloVIP    = time.Second
	sloNormal = 5 * time.Second
	sloBatch  = time.Minute
	sloTPOT   = 50 * time.Millisecond

	classShare  = 0.2 // of the capacity: vip's part, and batch's
	mostShare   = 0.4 // of the load, where that is below the two parts together
	longWarmup  = 60 * time.Second
	shortWarmup = 20 * time.Second
	shortRun    = 2 * time.Minute
)

// objectives are the budgets for the first token.
func objectives() map[inference.Class]time.Duration {
	return map[inference.Class]time.Duration{inference.VIP: sloVIP, inference.Normal: sloNormal, inference.Batch: sloBatch}
}

// patience is how long a client waits for its first token before it goes away.
func patience() map[inference.Class]time.Duration {
	return map[inference.Class]time.Duration{
		inference.VIP: 10 * time.Second, inference.Normal: 15 * time.Second, inference.Batch: 2 * time.Minute,
	}
}

// DefaultOverload is the comparison that the documentation speaks of.
func DefaultOverload() Overload {
	return Overload{
		Loads: []float64{2, 10}, Systems: []string{SystemDirect, SystemSpillway}, Limiter: admission.LimitLearned,
		Engines: 4, Duration: 6 * time.Minute, Trace: "azure-2023-conv", Seeds: 5, Seed: 1,
	}
}

// Validate returns all mistakes joined, each beginning with the flag's name.
func (o *Overload) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(o.Loads) > 0, "load: needs at least one")
	for _, x := range o.Loads {
		check(x > 0 && x <= 100, "load: must be above 0 and at most 100, got %v", x)
	}
	check(len(o.Systems) > 0, "systems: needs at least one")
	for _, s := range o.Systems {
		check(slices.Contains(OverloadSystems(), s), "systems: want some of %s, or all, got %q", strings.Join(OverloadSystems(), ", "), s)
	}
	cfg := admission.Default()
	cfg.Limit = o.Limiter
	if err := cfg.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("limiter: %w", err))
	}
	check(o.Engines >= 1 && o.Engines <= 64, "engines: must be 1 to 64, got %d", o.Engines)
	check(len(o.Speeds) == 0 || len(o.Speeds) == o.Engines, "speeds: %d for %d engines", len(o.Speeds), o.Engines)
	check(o.Duration > 0, "duration: must be > 0, got %v", o.Duration)
	check(o.Warmup >= 0 && o.warmup() < o.Duration, "warmup: must be below the duration of %v, got %v", o.Duration, o.warmup())
	check(o.Retries >= 0 && o.Retries <= 10, "retries: must be 0 to 10, got %d", o.Retries)
	check(o.Seeds >= 1 && o.Seeds <= 1000, "seeds: must be 1 to 1000, got %d", o.Seeds)
	known := o.Scenario == "" || o.Scenario == AllScenarios
	for _, s := range OverloadScenarios() {
		known = known || s.Name == o.Scenario
	}
	check(known, "scenario: unknown %q; see 'spillway bench list'", o.Scenario)
	if _, err := o.Batching(); err != nil {
		errs = append(errs, fmt.Errorf("engine-args: %w", err))
	}
	return errors.Join(errs...)
}

// warmup is the time at the start that is not judged.
func (o *Overload) warmup() time.Duration {
	switch {
	case o.Warmup > 0:
		return o.Warmup
	case o.Duration < shortRun:
		return shortWarmup
	}
	return longWarmup
}

// Batching is the engines' law. Prompts of these runs share nothing, so their
// prefix cache is off in virtual time and without effect in real time.
func (o *Overload) Batching() (engine.Batching, error) {
	law := engine.Default().Batching
	law.PrefixCache = false
	f := flag.NewFlagSet("engine", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.DurationVar(&law.StepBase, "step-base", law.StepBase, "")
	f.DurationVar(&law.StepPerSeq, "step-per-seq", law.StepPerSeq, "")
	f.DurationVar(&law.StepPerPromptToken, "step-per-prompt-token", law.StepPerPromptToken, "")
	f.IntVar(&law.Chunk, "chunk", law.Chunk, "")
	f.IntVar(&law.MaxSeqs, "max-seqs", law.MaxSeqs, "")
	f.IntVar(&law.KVTokens, "kv-tokens", law.KVTokens, "")
	f.IntVar(&law.Queue, "queue", law.Queue, "")
	_ = f.String("overload", "", "") // how a full queue is told; virtual engines have one way
	if err := f.Parse(o.Args); err != nil {
		return law, err
	}
	if f.NArg() > 0 {
		return law, fmt.Errorf("want flags, got %q", f.Arg(0))
	}
	return law, law.Validate()
}

// Fleet is the engines as the optimum sees them.
func (o *Overload) Fleet() ([]Server, error) {
	law, err := o.Batching()
	if err != nil {
		return nil, err
	}
	fleet := make([]Server, o.Engines)
	for i := range fleet {
		fleet[i] = Server{Batching: law, Speed: 1}
		if i < len(o.Speeds) {
			fleet[i].Speed = o.Speeds[i]
		}
	}
	return fleet, nil
}

// Admission is the gateway's section `admission`: the classes' objectives are those
// that the bench judges by, and everything else is as in a file that says nothing
// but for the limiter of the system.
func (o *Overload) Admission(limiter string, static int64) admission.Config {
	cfg := admission.Default()
	cfg.Limit, cfg.StaticLimit = limiter, static
	for class, c := range map[inference.Class]*admission.Class{
		inference.VIP: &cfg.Classes.VIP, inference.Normal: &cfg.Classes.Normal, inference.Batch: &cfg.Classes.Batch,
	} {
		c.TTFT, c.TPOT = objectives()[class], sloTPOT
	}
	return cfg
}

// limiter is the limiter of a system that is the gateway.
func (o *Overload) limiter(system string) string {
	if name, other := strings.CutPrefix(system, SystemSpillway+"-"); other {
		return name
	}
	return o.Limiter
}

// source is the trace: its place in a configuration, and the files that it is in.
func (o *Overload) source() (load.Trace, fs.FS, error) {
	// Rows of one time stamp are spread until the next one: such a stamp is the
	// recorder's resolution.
	t := load.Trace{Speed: 1, RateScale: 1, Spread: true}
	if o.Trace == ExcerptTrace {
		t.Path = excerptPath
		return t, excerpt, nil
	}
	t.Path = o.Trace
	if _, err := os.Stat(o.Trace); err == nil || strings.ContainsRune(o.Trace, os.PathSeparator) {
		return t, nil, err
	}
	data := os.Getenv("SPILLWAY_DATA")
	if data == "" {
		data = filepath.Join("..", "shared", "data")
	}
	for _, end := range []string{".csv.gz", ".jsonl.gz", ".csv", ".jsonl"} {
		t.Path = filepath.Join(data, o.Trace+end)
		if _, err := os.Stat(t.Path); err == nil {
			return t, nil, nil
		}
	}
	if o.Trace == arenaTrace {
		t.Path = arenaPath
		return t, arena, nil
	}
	return t, nil, fmt.Errorf("no trace %s in %s (SPILLWAY_DATA names the folder); %s and %s are built in", o.Trace, data, ExcerptTrace, arenaTrace)
}

// Mix is what the trace asks for.
func (o *Overload) Mix() (Mix, error) {
	t, files, err := o.source()
	if err != nil {
		return Mix{}, err
	}
	cfg := load.Default()
	cfg.Schedule.Trace = t
	return TraceMix(cfg, load.Options{FS: files})
}

// Terms are what a run of these settings is judged by.
func (o *Overload) Terms(mix Mix) (Terms, error) {
	fleet, err := o.Fleet()
	return Terms{From: o.warmup(), To: o.Duration, TTFT: objectives(), TPOT: sloTPOT, Fleet: fleet, Lengths: mix.Lengths}, err
}

// plan is a configuration of which only the load is still open.
type plan struct {
	load.Config
	options load.Options
	rate    float64 // requests a second that the fleet could serve at best
}

// prepare makes what the configurations of all loads have in common: the trace,
// begun at another place for each seed, and eight tenants of unequal shares where
// it does not name its clients.
func (o *Overload) prepare(seed uint64, mix Mix) (plan, error) {
	p := plan{Config: load.Default()}
	t, files, err := o.source()
	if err != nil {
		return p, err
	}
	fleet, err := o.Fleet()
	if err != nil {
		return p, err
	}
	if p.rate = NewOptimum(fleet, sloTPOT, mix.Lengths).Rate; p.rate <= 0 || mix.Rate <= 0 {
		return p, fmt.Errorf("trace %s: neither its rate nor the engines' may be zero", o.Trace)
	}
	// Multiples of the golden ratio spread the beginnings whatever the number of seeds.
	_, part := math.Modf(float64(seed%offsets) * math.Phi)
	t.Offset = time.Duration(part * float64(len(mix.Lengths)) / mix.Rate * float64(time.Second))
	p.Scenario, p.Seed = "overload", seed
	p.Schedule.Trace, p.Schedule.Duration = t, o.Duration
	p.SLO = load.SLO{TTFT: sloNormal, TPOT: sloTPOT}
	p.Client.Retries = o.Retries
	p.options = load.Options{FS: files}
	named, err := namesClients(p.Config, p.options)
	if err == nil && !named {
		for i := range drawnTenants {
			p.Tenants = append(p.Tenants, load.Tenant{Name: fmt.Sprintf("tenant-%d", i+1), Share: float64(i + 1)})
		}
	}
	return p, err
}

const (
	drawnTenants = 8
	offsets      = 1 << 20 // seeds behind which the trace's beginnings repeat
)

// namesClients says whether a trace tells who sent its requests.
func namesClients(cfg load.Config, opts load.Options) (bool, error) {
	for p, err := range load.Plan(cfg, opts) {
		return p.Tenant != "", err
	}
	return false, nil
}

// Load is the configuration of a run at x times the capacity, and the options that
// it needs: the trace, sped up until it asks for x times what the fleet could serve
// at best, and repeated with the same tenants when it is over. The target is not
// set.
func (o *Overload) Load(x float64, seed uint64, mix Mix) (load.Config, load.Options, error) {
	p, err := o.prepare(seed, mix)
	if err != nil {
		return p.Config, p.options, err
	}
	cfg := p.Config
	cfg.Load = x
	cfg.Schedule.Trace.Speed = x * p.rate / mix.Rate
	share := min(classShare/x, mostShare)
	cfg.Classes = []load.Class{
		{Name: inference.VIP.String(), Share: share, TTFT: sloVIP},
		{Name: inference.Normal.String(), Share: 1 - 2*share, TTFT: sloNormal},
		{Name: inference.Batch.String(), Share: share, TTFT: sloBatch},
	}
	return cfg, p.options, nil
}

// Phase is a stretch of a load that changes: from one multiple of the capacity to
// another, linearly.
type Phase struct {
	From, To float64
	Length   time.Duration
}

// Phases are the configurations of a run whose load changes, to be played at the
// same time: one for each class, because vip and batch stay at 0.2 of the capacity
// while normal makes up the rest. Arrivals are Poisson, lengths the trace's.
func (o *Overload) Phases(phases []Phase, seed uint64, mix Mix) ([]load.Config, load.Options, error) {
	var out []load.Config
	var opts load.Options
	for i, class := range []inference.Class{inference.VIP, inference.Normal, inference.Batch} {
		p, err := o.prepare(seed+uint64(i)*offsets, mix)
		if err != nil {
			return nil, p.options, err
		}
		var profile []string
		for _, ph := range phases {
			from, to := min(classShare, mostShare*ph.From), min(classShare, mostShare*ph.To)
			if class == inference.Normal {
				from, to = ph.From-2*from, ph.To-2*to
			}
			profile = append(profile, fmt.Sprintf("ramp %.4f-%.4f/s:%v", from*p.rate, to*p.rate, ph.Length))
		}
		cfg := p.Config
		cfg.Schedule.Profile = strings.Join(profile, ",")
		cfg.Classes = []load.Class{{Name: class.String(), Share: 1, TTFT: objectives()[class]}}
		out, opts = append(out, cfg), p.options
	}
	return out, opts, nil
}
