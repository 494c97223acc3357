package health

import (
	"context"
	"net/url"
	"time"

	"github.com/spillway/spillway/internal/fleet"
)

// The kinds of work.
const (
	workCheck  = iota // probe an instance
	workScrape        // read an instance's metrics
	workLearn         // ask a pool's instances for their models
)

// workKey names one worker: the kind of its work and the instance or pool.
type workKey struct {
	kind int
	name string
}

// job is what a worker works on. When it changes, another worker takes over.
type job struct {
	pool, name string
	url        url.URL
	interval   time.Duration // here because a new one holds at once, not after the old one's wait

	live, poolLive, regionLive *fleet.Live
}

// worker is one goroutine that does a step, waits, and does the next.
type worker struct {
	job    job
	cancel context.CancelFunc
	done   chan struct{}
	wake   chan struct{} // of capacity 1
}

// step does the work once and returns the wait until the next time. It starts no
// goroutine that outlives it.
type step func(ctx context.Context) time.Duration

// start makes and starts a worker.
func (m *Monitor) start(ctx context.Context, key workKey, j job) *worker {
	ctx, cancel := context.WithCancel(ctx)
	w := &worker{job: j, cancel: cancel, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	var first time.Duration
	var do step
	switch key.kind {
	case workCheck:
		c := &checker{m: m, job: j, down: m.isDown(j.name)}
		first, do = c.delay(), c.step
	case workScrape:
		do = (&scraper{m: m, job: j}).step
	case workLearn:
		do = (&learner{m: m, pool: j.pool, lists: make(map[string][]string)}).step
	}
	go w.run(ctx, first, do)
	return w
}

// isDown says whether an instance was marked down before, by a worker for its
// old address or before it left for a while.
func (m *Monitor) isDown(name string) bool {
	i, ok := m.fleet.Snapshot().Instance(name)
	return ok && i.Status(time.Now().UnixNano()) == fleet.Down
}

// run is the worker's goroutine.
func (w *worker) run(ctx context.Context, wait time.Duration, do step) {
	defer close(w.done)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-w.wake:
		}
		timer.Reset(do(ctx))
	}
}

// kick makes the worker do its next step now.
func (w *worker) kick() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// end stops the worker and waits for it, so that it judges nothing afterwards.
func (w *worker) end() {
	w.cancel()
	<-w.done
}
