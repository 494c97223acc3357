package bench

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/load"
)

// Constants of streams. A kilobyte is 1,000 bytes.
const (
	streamGap       = 50 * time.Millisecond // 20 events/s
	streamBytes     = 50.0                  // kilobytes of the gateway's memory for an open stream
	idleConnBytes   = 22.0                  // and for an idle connection
	idleConnections = 2000
	streamRamp      = 4 * time.Second
	// leaveMost is how many clients of leave, and dials of streams, run at once.
	leaveMost = 32
)

// playStreams holds many streams at once, then many idle connections.
func playStreams(ctx context.Context, r *rig) error {
	flags := []string{"--step-base", streamGap.String(), "--step-per-seq", "0s", "--step-per-prompt-token", "0s", "--max-seqs", fmt.Sprint(r.Count), "--kv-tokens", "8000000"}
	if err := r.start(ctx, 2, flags...); err != nil {
		return err
	}
	before, err := r.warm(ctx)
	if err != nil {
		return err
	}
	ramp := min(streamRamp, r.Duration/4)
	length := r.Duration + ramp
	r.say("%d streams of %.0f events/s at once for %v", r.Count, 1/streamGap.Seconds(), r.Duration)
	cfg := r.config("streams", float64(r.Count)/ramp.Seconds(), ramp)
	cfg.Schedule.Arrivals = load.Uniform
	cfg.Request.PromptTokens, cfg.Request.OutputTokens = 16, int(length/streamGap)
	cfg.EngineMetrics = r.engines.metrics()
	var full footprint // read while all streams are open
	var open int64
	systems, err := r.play(ctx, job{cfg: cfg, hooks: []load.Hook{{At: ramp + r.Duration*3/4, Name: "measure", Do: func(ctx context.Context, live *load.Live) (err error) {
		open = live.InFlight()
		full, err = r.gateway.footprint(ctx)
		return err
	}}}})
	if err != nil {
		return err
	}
	s := systems[0]
	r.expect("streams open at once", float64(open), AtLeast, float64(r.Count), "")
	r.expect("streams that failed", float64(failures(s)), Exactly, 0, "")
	r.expect("memory for an open stream", (full.rss-before.rss)/1000/float64(max(open, 1)), AtMost, streamBytes, "kB")
	if err := r.expectBack(ctx, before); err != nil {
		return err
	}
	after, err := r.gateway.footprint(ctx)
	if err != nil {
		return err
	}
	tokens := float64(max(s.OutputTokens, 1))
	r.say("the gateway used %.1f us of processor time for each event", (after.processor-before.processor)*1e6/tokens)
	if err := r.expectZero(ctx); err != nil {
		return err
	}
	return r.idleConns(ctx)
}

// warm sends a few requests, so that what is started by the first of them counts
// as idle, and reads the idle footprint.
func (r *rig) warm(ctx context.Context) (footprint, error) {
	for range 4 {
		if err := r.ask(ctx, http.DefaultTransport); err != nil {
			return footprint{}, err
		}
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if err := pause(ctx, 500*time.Millisecond); err != nil {
		return footprint{}, err
	}
	return r.gateway.footprint(ctx)
}

// expectBack notes that goroutines and descriptors must come back to what they
// were; a connection to an instance that is kept for later holds a descriptor.
func (r *rig) expectBack(ctx context.Context, before footprint) error {
	var now footprint
	files := func() float64 { return now.files - now.idle }
	err := settled(ctx, func() (bool, error) {
		var err error
		now, err = r.gateway.footprint(ctx)
		return now.goroutines <= before.goroutines && files() <= before.files-before.idle, err
	})
	r.expect("goroutines afterwards", now.goroutines, AtMost, before.goroutines, "")
	r.expect("descriptors afterwards, without idle upstream connections", files(), AtMost, before.files-before.idle, "")
	return err
}

// idleConns opens connections, each of which has asked once, and weighs them.
func (r *rig) idleConns(ctx context.Context) error {
	if err := r.start(ctx, 2); err != nil {
		return err
	}
	before, err := r.warm(ctx)
	if err != nil {
		return err
	}
	transports := make([]*http.Transport, idleConnections)
	var wg sync.WaitGroup
	slots, errs := make(chan struct{}, leaveMost), make(chan error, idleConnections)
	for i := range transports {
		transports[i] = &http.Transport{} // a connection of its own
		slots <- struct{}{}
		wg.Go(func() {
			if err := r.ask(ctx, transports[i]); err != nil {
				errs <- err
			}
			<-slots
		})
	}
	wg.Wait()
	defer func() {
		for _, t := range transports {
			t.CloseIdleConnections()
		}
	}()
	select {
	case err := <-errs:
		return err
	default:
	}
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	full, err := r.gateway.footprint(ctx)
	if err != nil {
		return err
	}
	held := full.files - full.idle - (before.files - before.idle)
	r.expect("idle client connections", held, AtLeast, idleConnections, "")
	r.expect("memory for an idle connection", (full.rss-before.rss)/1000/idleConnections, AtMost, idleConnBytes, "kB")
	for _, t := range transports {
		t.CloseIdleConnections()
	}
	return r.expectBack(ctx, before)
}
