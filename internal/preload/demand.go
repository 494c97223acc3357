package preload

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// shards is the number of parts that the keys are spread over, each with its lock.
const shards = 16

// halfLife is the age at which an ask counts half in what stays counted: a day, so
// that keys outlive the night.
const halfLife = day

// Demand is the embedded engine: a Stream that counts, and a Predictor. Its memory
// is bounded by Config.Keys and Config.MaxBytes. It is safe for concurrent use, and
// has no goroutine.
//
// The newest event, or Tick, is the watermark. The window it falls into is open and
// so is the one before; older ones are closed: an event of them is late, and only
// counted as that. What is predicted reckons with the windows that are open.
type Demand struct {
	window   time.Duration
	keys     int
	maxBytes int64
	perDay   int
	head     atomic.Int64 // number of the window of the watermark
	mark     atomic.Int64 // the watermark, Unix nanoseconds
	shards   [shards]space
	rhythm   struct {
		sync.Mutex
		Profile // of all keys together
	}
}

// NewDemand returns an engine that has seen nothing.
func NewDemand(cfg Config) *Demand {
	d := &Demand{window: cfg.Window, keys: cfg.Keys, maxBytes: int64(cfg.MaxBytes), perDay: int(day / cfg.Window)}
	d.head.Store(math.MinInt64)
	for i := range d.shards {
		s := &d.shards[i]
		s.prepare((cfg.Keys+shards-1-i)/shards, d.maxBytes/shards)
		s.head = math.MinInt64
	}
	return d
}

// same says whether the configuration makes the same engine.
func (d *Demand) same(cfg Config) bool {
	return d.window == cfg.Window && d.keys == cfg.Keys && d.maxBytes == int64(cfg.MaxBytes)
}

// index is the number of an instant's window since the epoch.
func (d *Demand) index(at time.Time) int64 {
	n, w := at.UnixNano(), int64(d.window)
	if n < 0 {
		n -= w - 1
	}
	return n / w
}

// advance moves the watermark on, and returns the number of its window.
func (d *Demand) advance(at time.Time) int64 {
	n := at.UnixNano()
	for old := d.mark.Load(); n > old && !d.mark.CompareAndSwap(old, n); old = d.mark.Load() {
	}
	w := d.index(at)
	for {
		old := d.head.Load()
		if w <= old {
			return old
		}
		if d.head.CompareAndSwap(old, w) {
			return w
		}
	}
}

// Observe implements Stream.
func (d *Demand) Observe(a Asked) {
	s := &d.shards[a.Key[0]%shards]
	head := d.advance(a.At)
	s.Lock()
	d.roll(s, head)
	back := s.head - d.index(a.At)
	if back > 1 {
		s.facts.late++
		s.Unlock()
		return
	}
	s.facts.asks++
	if a.Hit {
		s.facts.hits++
	}
	c := s.count(&a.Key, back)
	if c != nil && a.Tokens > 0 {
		c.tokens = a.Tokens
	}
	size := int64(0)
	want, times := c != nil && c.kept == nil && c.asks >= hot && a.Request != nil, s.forgotten
	if want {
		size = requestSize(a.Request)
		want = s.wants(c, size)
	}
	s.Unlock()
	if !want || !repeatable(&a) {
		return
	}
	kept := Strip(a.Request) // outside of the lock: a body may be large
	s.Lock()
	defer s.Unlock()
	if c := s.counters[a.Key]; c != nil && c.kept == nil && s.forgotten == times {
		s.keep(c, kept, size)
	}
}

// Forget drops the requests that are kept, and nothing that is counted: what is asked
// for again is copied again.
func (d *Demand) Forget() {
	for i := range d.shards {
		s := &d.shards[i]
		s.Lock()
		for _, c := range s.heap {
			s.drop(c)
		}
		s.floor = 0
		s.forgotten++
		s.Unlock()
	}
}

// Tick moves the watermark to now, and closes what is over.
func (d *Demand) Tick(now time.Time) {
	head := d.advance(now)
	for i := range d.shards {
		s := &d.shards[i]
		s.Lock()
		d.roll(s, head)
		s.Unlock()
	}
}

// roll brings a shard to the watermark's window. The caller holds its lock. It costs
// some 50 ns a key, once a window.
func (d *Demand) roll(s *space, head int64) {
	if s.head >= head {
		return
	}
	if s.head == math.MinInt64 {
		s.head = head
		return
	}
	// Of a long silence two days are enough to forget what went before it.
	if gap := head - s.head; gap > int64(2*d.perDay) {
		s.head = head - int64(2*d.perDay)
	}
	for s.head < head {
		d.close(s)
	}
}

// close closes the window before a shard's newest, and opens the next.
func (d *Demand) close(s *space) {
	closed, hour := s.head-1, hourOf(s.head-1, d.perDay)
	total := 0.0
	d.rhythm.Lock()
	prior := d.rhythm.Profile
	d.rhythm.Unlock()
	for _, c := range s.heap {
		count := float64(c.seen[1])
		total += count
		if c.asks >= hot {
			s.facts.expected += float64(c.expect[1])
			s.facts.came += count
			s.facts.missed += math.Abs(count - float64(c.expect[1]))
		}
		c.series.step(count, hour, d.perDay, &prior)
		v := d.view(c, &prior)
		v.take(closed+1, float64(c.seen[0]))
		c.expect = [2]float32{float32(v.next(closed + 2)), c.expect[0]}
		c.seen = [2]uint32{0, c.seen[0]}
	}
	d.rhythm.Lock()
	d.rhythm.Add(hour, total, 1.0/shards, d.perDay, nil)
	d.rhythm.Unlock()
	s.head++
	s.age(float64(d.window) / float64(halfLife))
}

// heaviest is where weights are scaled down again.
const heaviest = 1 << 40

// age makes an ask weigh more than one before, by half-lives.
func (s *space) age(by float64) {
	s.unit *= math.Exp2(by)
	if s.unit < heaviest {
		return
	}
	for _, c := range s.heap {
		c.weight /= s.unit
	}
	s.floor /= s.unit
	s.unit = 1
}

// view is what is known of a counter for a forecast.
func (d *Demand) view(c *counter, prior *Profile) view {
	level := c.series
	level.rebase(prior)
	return view{Holt: level.Holt, profile: &c.series.profile, prior: prior, perDay: d.perDay}
}

// Predict implements Predictor. It takes each shard's lock for some microseconds a
// hundred kept requests.
func (d *Demand) Predict(now time.Time, w Window, horizon time.Duration) []Prediction {
	d.Tick(now)
	d.rhythm.Lock()
	prior := d.rhythm.Profile
	d.rhythm.Unlock()
	first := d.index(w.Start)
	n := max(1, int(horizon/d.window))
	var list []Prediction
	for i := range d.shards {
		s := &d.shards[i]
		s.Lock()
		for _, c := range s.heap {
			if c.kept == nil {
				continue
			}
			v := d.view(c, &prior)
			v.take(s.head-1, float64(c.seen[1]))
			// Of the newest window a part is over; the rest comes as forecast.
			left := 1 - float64(now.UnixNano()-s.head*int64(d.window))/float64(d.window)
			v.take(s.head, float64(c.seen[0])+min(1, max(0, left))*v.next(s.head))
			asks := v.sum(s.head, max(first, s.head+1), n)
			list = append(list, Prediction{Key: c.key, Request: c.kept, Asks: asks, Tokens: tokensOf(c)})
		}
		s.Unlock()
	}
	return list
}

// usualAnswer is the number of tokens that an answer is reckoned to have while none
// was seen and the request sets no bound.
const usualAnswer = 256

// tokensOf is what an answer costs, prompt included.
func tokensOf(c *counter) int64 {
	answer := c.tokens
	if answer == 0 {
		answer = usualAnswer
		if m := c.kept.MaxTokens; m > 0 {
			answer = min(m, usualAnswer)
		}
	}
	return c.kept.PromptTokens() + answer
}

// census sums up what the shards count.
func (d *Demand) census() facts {
	var sum facts
	for i := range d.shards {
		s := &d.shards[i]
		s.Lock()
		f := s.facts
		f.keys, f.bytes = int64(len(s.heap)), s.bytes
		for _, c := range s.heap {
			if c.kept != nil {
				f.kept++
			}
		}
		s.Unlock()
		sum.add(f)
	}
	return sum
}
