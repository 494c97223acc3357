package api

import (
	"sync"
	"time"
)

// lazyDeadline keeps a connection's deadline with few system timers. net/http
// and the handler move it several times a request, nearly always further away;
// the timer in force is left alone then, and set anew only when it fires too
// early. A deadline that comes nearer is set at once.
type lazyDeadline struct {
	mu struct {
		sync.Mutex
		want  time.Time // zero: none
		armed time.Time // what the connection's own timer is set to; zero: none
	}
}

// past separates real deadlines from those that only wake a blocked reader.
var past = time.Unix(1<<20, 0)

// set makes t the deadline.
func (d *lazyDeadline) set(t time.Time, arm func(time.Time) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.want = t
	woken := !d.mu.armed.IsZero() && d.mu.armed.Before(past)
	if !woken && (t.IsZero() || !d.mu.armed.IsZero() && !t.Before(d.mu.armed)) {
		return nil
	}
	d.mu.armed = t
	return arm(t)
}

// woken says whether the deadline in force only wakes a reader.
func (d *lazyDeadline) woken() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.mu.want.IsZero() && d.mu.want.Before(past)
}

// early is asked when the timer fired: it says whether that was too early, and
// sets the timer anew when it was.
func (d *lazyDeadline) early(now time.Time, arm func(time.Time) error) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.mu.want.IsZero() && !now.Before(d.mu.want) {
		return false
	}
	d.mu.armed = d.mu.want
	return arm(d.mu.armed) == nil
}
