// Command proxy measures what a proxied request and a proxied stream event cost through Spillway, in comparison with
// nginx and HAProxy on the same machine in the same minutes, and judges the result (make bench-proxy).
//
// It builds a canned model server and a load client in C (folder rig), which cost about as much as the system calls they
// make, installs the peers where they are missing, and then runs rounds: within a round every load runs once on every
// system, one after the other, each time on a freshly started system. CPU is read from the process clocks of the system
// under test at the edges of the window. The tables show medians over the rounds and ratios to nginx paired by round.
//
// Files: loads.go has the loads and the metrics, score.go the arithmetic and the goals, render.go the systems and their
// configurations (folder conf), rig.go and process.go start and stop things, report.go prints.
//
// One goroutine does everything, locked to its thread (the children's death signal belongs to it); another only waits for
// each child. Everything listens on 127.0.0.1. All children end with the run, with Ctrl-C, and when the bench is killed.
//
// Exit status: 0 when every goal that was run is reached, 1 when one is missed or the rig is too slow, 2 when the bench
// could not run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	os.Exit(Main(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options are the flags.
type options struct {
	rounds   int
	seconds  float64
	warm     float64
	trials   int
	only     string
	json     string
	spillway string
	systems  []System
}

func parseFlags(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("proxy", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.IntVar(&o.rounds, "rounds", 9, "interleaved rounds")
	f.Float64Var(&o.seconds, "seconds", 4, "length of a window, in seconds")
	f.Float64Var(&o.warm, "warm", 1, "warm-up before each window, in seconds")
	f.IntVar(&o.trials, "trials", 25, "trials of each phase in which a client leaves")
	f.StringVar(&o.only, "only", "", "comma-separated loads: rig json open500 open3000 sseA sseB sseC idle leave hold soak (default all)")
	f.StringVar(&o.json, "json", "", "write all samples and verdicts to this `file`")
	f.StringVar(&o.spillway, "spillway", "", "the spillway `binary` (default: built from ./cmd/spillway)")
	f.Func("sut", "`name=command` of a system to judge instead of spillway, repeatable; the command is split at blanks and may hold\n"+
		"{listen} {admin} {up1} {up2} {up3} {config} {dir} {keys} {key} {log}", func(v string) error {
		s, err := ParseSystem(v)
		o.systems = append(o.systems, s)
		return err
	})
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 || o.rounds < 1 || o.seconds <= 0 || o.warm <= 0 || o.trials < 1 || o.trials > 1000 {
		return o, errors.New("rounds, seconds, warm and trials (at most 1000) must be positive, and no arguments may follow")
	}
	return o, nil
}

// Main runs the bench and returns its exit status.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseFlags(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	ok := false
	if err == nil {
		ok, err = execute(ctx, o, stdout, stderr)
	}
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "bench-proxy:", err)
		return 2
	case !ok:
		return 1
	}
	return 0
}

// execute prepares, measures and reports; it returns whether all goals are reached.
func execute(ctx context.Context, o options, stdout, stderr io.Writer) (bool, error) {
	picked, err := PickLoads(o.only, o.seconds, o.warm)
	if err != nil {
		return false, err
	}
	dir, err := os.MkdirTemp("", "bench-proxy-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	b := &bench{dir: dir, files: raiseFiles(), log: stderr, trials: o.trials, results: Results{}}
	systems, err := b.prepare(ctx, o)
	if err != nil {
		return false, err
	}
	if err := b.startMock(ctx); err != nil {
		return false, err
	}
	defer b.mock.stop()
	if err := b.rounds(ctx, o.rounds, systems, picked); err != nil {
		return false, err
	}
	return b.report(ctx, o, systems, picked, stdout)
}

// prepare builds and installs what the run needs and lists its systems.
func (b *bench) prepare(ctx context.Context, o options) ([]System, error) {
	if err := BuildRig(ctx, b.dir); err != nil {
		return nil, err
	}
	if err := installPeers(ctx, b.log); err != nil {
		return nil, err
	}
	if len(o.systems) > 0 {
		return append(peers(), o.systems...), nil
	}
	if o.spillway == "" {
		o.spillway = filepath.Join(b.dir, "spillway")
		if _, err := run(ctx, 5*time.Minute, "go", "build", "-o", o.spillway, "./cmd/spillway"); err != nil {
			return nil, err
		}
	}
	return append(peers(), System{
		Name: "spillway", Template: "spillway.yaml.tmpl", Command: o.spillway + " serve -c {config}", Judged: true,
	}), nil
}

// rounds measures everything. An error of a judged system or of a peer ends the run: a table with holes misleads.
func (b *bench) rounds(ctx context.Context, n int, systems []System, loads []Load) error {
	begun := time.Now()
	for round := range n {
		for _, l := range loads {
			if !l.runs(round) {
				continue
			}
			for _, s := range systems {
				if !l.For(s) {
					continue
				}
				sample, err := b.measure(ctx, s, l)
				if ctx.Err() != nil {
					return errors.New("interrupted")
				}
				if err != nil {
					return fmt.Errorf("round %d, %s on %s: %w", round+1, l.Name, s.Name, err)
				}
				b.results.Add(s.Name, l.Name, round, sample)
				fmt.Fprintf(b.log, "%6s  round %d/%d  %-8s  %-10s  %s\n", time.Since(begun).Round(time.Second), round+1, n, l.Name, s.Name, brief(sample))
			}
		}
	}
	return nil
}

// brief is a sample on one line, for the progress log.
func brief(s Sample) string {
	var parts []string
	for _, m := range []string{"cpu_us", "per_second", "p50_us", "delay_p50_us", "kb_per_client", "mid_p50_ms"} {
		if x, ok := s[m]; ok {
			parts = append(parts, m+"="+number(x))
		}
	}
	if x := s["errors"] + s["broken"]; x > 0 {
		parts = append(parts, "ERRORS="+number(x))
	}
	return strings.Join(parts, " ")
}

// report prints tables and verdicts, writes the JSON file, and returns whether all goals are reached.
func (b *bench) report(ctx context.Context, o options, systems []System, loads []Load, stdout io.Writer) (bool, error) {
	f := fileReport{Scenario: "proxy", Machine: machine(ctx), Rounds: o.rounds, Systems: systemReports(b.results, systems)}
	fmt.Fprintf(stdout, "%s; %d rounds of %s s\n", f.Machine, o.rounds, number(o.seconds))
	PrintTables(stdout, b.results, systems, loads)
	f.Rig = Judge(b.results, direct, RigGoals())
	PrintVerdicts(stdout, "the rig itself (direct, without a proxy)", f.Rig)
	if f.Valid = !Missed(f.Rig); !f.Valid {
		f.Reason = "the rig is slower than it must be"
	}
	for _, s := range systems {
		if !s.Judged {
			continue
		}
		v := Judge(b.results, s.Name, Goals())
		f.Verdicts = append(f.Verdicts, v...)
		PrintVerdicts(stdout, s.Name, v)
	}
	if o.json != "" {
		if err := writeJSON(o.json, f); err != nil {
			return false, err
		}
	}
	return f.Valid && !Missed(f.Verdicts), nil
}

// machine says what the figures were measured on: a run on another machine has other figures, but similar ratios.
func machine(ctx context.Context) string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	load, _ := os.ReadFile("/proc/loadavg")
	average, _, _ := strings.Cut(string(load), " ")
	text := fmt.Sprintf("%d CPUs, kernel %s, %s, load average %s", runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version(),
		average)
	if out, err := run(ctx, 10*time.Second, "sh", "-c", "nginx -v 2>&1; haproxy -v | head -1"); err == nil {
		text += "; " + strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "; ")
	}
	return text
}
