package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spillway/spillway/internal/load"
)

// Constants of hang. The rule is that of the stall detection: an instance gets
// nothing new once no token came on any of two or more streams for max(1 s, 20
// times their mean gap), or once its first byte is later than 3 times its p99,
// which the gateway does not judge below 1 s.
const (
	hangFor    = 8 * time.Second
	hangFloor  = time.Second
	hangGaps   = 20
	hangFirsts = 3
	// hangSlack is the time between the signal and the instance's last byte at
	// the gateway, on a machine that is busy.
	hangSlack  = 150 * time.Millisecond
	longPrompt = 64 << 10 // tokens
)

// playHang stops one of three instances, first under streams and then under
// short answers, and then sends long prompts to healthy ones.
func playHang(ctx context.Context, r *rig) error {
	if err := r.start(ctx, 3, "--step-base", "8ms", "--step-per-seq", "50us"); err != nil {
		return err
	}
	const victim = 1
	streams := r.config("streams", 30, r.Duration)
	streams.Request.PromptTokens, streams.Request.OutputTokens = 64, 100
	if err := r.hang(ctx, victim, streams); err != nil {
		return err
	}
	whole := r.config("json", 100, r.Duration)
	whole.Request.Streamed, whole.Request.PromptTokens, whole.Request.OutputTokens = 0, 32, 2
	if err := r.hang(ctx, victim, whole); err != nil {
		return err
	}
	return r.longPrefill(ctx)
}

// hang stops the victim in the middle of a load and lets it go on.
func (r *rig) hang(ctx context.Context, victim int, cfg load.Config) error {
	stopAt, length := r.Duration*2/5, min(hangFor, r.Duration*2/5)
	r.say("%s: one of three instances is stopped (SIGSTOP) at %v for %v", cfg.Target.Name, stopAt, length)
	began := time.Now()
	var stopped, resumed time.Time // written by hooks, read when the load is over
	systems, err := r.play(ctx, job{cfg: cfg, hooks: []load.Hook{
		{At: stopAt, Name: "stop", Do: func(context.Context, *load.Live) error {
			stopped = time.Now()
			return r.engines.all[victim].signal(syscall.SIGSTOP)
		}},
		{At: stopAt + length, Name: "resume", Do: func(context.Context, *load.Live) error {
			resumed = time.Now()
			return r.engines.all[victim].signal(syscall.SIGCONT)
		}},
	}})
	if err != nil {
		return err
	}
	s := systems[0]
	lines, err := r.accessLines(ctx, began, s.Offered)
	if err != nil {
		return err
	}
	name := instanceName("eu", r.engines.at[victim])
	limit, from := hangFloor, stopped
	if s.ITL != nil {
		limit = max(limit, time.Duration(hangGaps*s.ITL.P50*float64(time.Millisecond)))
	} else { // the wait for a first byte begins with the first request that it does not answer
		limit = max(limit, hangFirsts*firstByteP99(lines, name, stopped))
		from = firstPending(lines, name, stopped)
	}
	early, after := 0, 0
	var late []time.Duration // after the stop
	for _, l := range lines {
		for _, at := range l.sentTo(name) {
			switch {
			case !at.Before(resumed):
				after++
			case !at.Before(from.Add(limit + hangSlack)):
				late = append(late, at.Sub(stopped).Round(time.Millisecond))
			case at.After(stopped):
				early++
			}
		}
	}
	slices.Sort(late)
	r.say("%s: %d requests went to the stopped instance within %v, while nobody could know; later ones at %v", cfg.Target.Name, early, limit, late)
	r.expect(fmt.Sprintf("%s: requests to the stopped instance later than %v", cfg.Target.Name, limit), float64(len(late)), Exactly, 0, "")
	r.expect(cfg.Target.Name+": requests to it after it went on", float64(after), AtLeast, 1, "")
	r.expect(cfg.Target.Name+": requests that failed", float64(failures(s)), Exactly, 0, "")
	return r.expectZero(ctx)
}

// firstPending is when the first of the requests was sent that an instance had
// not answered when it was stopped; not before the stop.
func firstPending(lines []accessLine, instance string, stopped time.Time) time.Time {
	first := time.Time{}
	for _, l := range lines {
		if !l.Time.After(stopped) {
			continue
		}
		for _, at := range l.sentTo(instance) {
			if first.IsZero() || at.Before(first) {
				first = at
			}
		}
	}
	if first.Before(stopped) {
		return stopped
	}
	return first
}

// longPrefill sends long prompts to healthy instances among short requests. None
// may be taken for stalled.
func (r *rig) longPrefill(ctx context.Context) error {
	r.say("prefill: prompts of %d tokens among short requests, all instances healthy", longPrompt)
	short, streams := job{cfg: r.config("short", 20, r.Duration)}, job{cfg: r.config("streams", 4, r.Duration)}
	short.cfg.Request.Streamed, short.cfg.Request.PromptTokens, short.cfg.Request.OutputTokens = 0, 32, 2
	streams.cfg.Request.PromptTokens, streams.cfg.Request.OutputTokens = 64, 100
	long := job{cfg: r.config("long", 0.25, r.Duration)}
	long.cfg.Schedule.Arrivals = load.Uniform
	long.cfg.Request.PromptTokens, long.cfg.Request.OutputTokens = longPrompt, 8

	watch, stop := context.WithCancel(ctx)
	stalls := 0
	var watchErr error
	var wg sync.WaitGroup
	wg.Go(func() { stalls, watchErr = r.watchStalls(watch) })
	systems, err := r.play(ctx, short, streams, long)
	stop()
	wg.Wait()
	if err != nil {
		return err
	}
	if watchErr != nil {
		return watchErr
	}
	r.expect("prefill: long prompts answered", float64(systems[2].Answered), AtLeast, 1, "")
	r.expect("prefill: looks that found a healthy instance stalled or ejected", float64(stalls), Exactly, 0, "")
	r.expect("prefill: requests that failed", float64(failures(systems[0])+failures(systems[1])+failures(systems[2])), Exactly, 0, "")
	return r.expectZero(ctx)
}

// watchStalls counts how often an instance is seen as stalled or ejected, until
// ctx ends.
func (r *rig) watchStalls(ctx context.Context) (int, error) {
	n := 0
	for pause(ctx, 50*time.Millisecond) == nil {
		p, err := r.gateway.fleet(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return n, err
		}
		for _, i := range p.Regions[0].Pools[0].Instances {
			if i.Status == "stalled" || i.Status == "ejected" {
				n++
			}
		}
	}
	return n, nil
}

// accessLine is what is read of a line of the access log.
type accessLine struct {
	Time     time.Time `json:"time"` // of the end
	Millis   float64   `json:"duration_ms"`
	Code     string    `json:"code"`
	Attempts []struct {
		Instance string  `json:"instance"`
		TTFT     float64 `json:"ttft_ms"`
		Millis   float64 `json:"ms"`
	} `json:"attempts"`
}

// milliseconds is a number of the log as a duration.
func milliseconds(v float64) time.Duration { return time.Duration(v * float64(time.Millisecond)) }

// sentTo lists when the request was sent to an instance. Back-offs between
// attempts are not in the log; the last attempt, which ends with the request, is
// exact, and the others are at most that much later than told.
func (l *accessLine) sentTo(instance string) []time.Time {
	var at []time.Time
	begin := l.Time.Add(-milliseconds(l.Millis))
	for i, a := range l.Attempts {
		if i == len(l.Attempts)-1 {
			begin = l.Time.Add(-milliseconds(a.Millis))
		}
		if a.Instance == instance {
			at = append(at, begin)
		}
		begin = begin.Add(milliseconds(a.Millis))
	}
	return at
}

// accessLines reads the lines of requests that ended since an instant, and waits
// until there are as many as wanted.
func (r *rig) accessLines(ctx context.Context, since time.Time, wanted int64) ([]accessLine, error) {
	var lines []accessLine
	err := settled(ctx, func() (bool, error) {
		f, err := os.Open(r.gateway.accessLog)
		if err != nil {
			return false, err
		}
		defer f.Close()
		lines = lines[:0]
		for s := bufio.NewScanner(f); s.Scan(); {
			var l accessLine
			if json.Unmarshal(s.Bytes(), &l) == nil && !l.Time.Before(since) { // the last line may be half written
				lines = append(lines, l)
			}
		}
		return int64(len(lines)) >= wanted, nil
	})
	if err == nil && int64(len(lines)) < wanted {
		err = fmt.Errorf("%s: %d lines for %d requests", r.gateway.accessLog, len(lines), wanted)
	}
	return lines, err
}

// firstByteP99 is the p99 of an instance's times to first byte before an
// instant.
func firstByteP99(lines []accessLine, instance string, until time.Time) time.Duration {
	var all []float64
	for _, l := range lines {
		if !l.Time.Before(until) {
			continue
		}
		for _, a := range l.Attempts {
			if a.Instance == instance && a.TTFT > 0 {
				all = append(all, a.TTFT)
			}
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return milliseconds(all[len(all)*99/100])
}
