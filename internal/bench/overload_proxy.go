package bench

import (
	"fmt"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Proxy is a model of what others put before engines: nginx with limit_req (a leaky
// bucket for all requests, nodelay) and least_conn, or HAProxy with leastconn,
// maxconn for each server, one queue and timeout queue. It stands for their
// algorithms alone, not for what they cost.
type Proxy struct {
	// Rate, in requests a second, and Burst are nginx's limit_req; a rate of 0 is none.
	Rate  float64
	Burst int
	// MaxConn is HAProxy's, for each server; 0 is without a bound.
	MaxConn int
	// Queue is how long HAProxy lets a request wait.
	Queue time.Duration
}

// String is what the proxy is set to.
func (p Proxy) String() string {
	if p.Rate > 0 {
		return fmt.Sprintf("limit_req rate=%.1fr/s burst=%d nodelay, least_conn", p.Rate, p.Burst)
	}
	return fmt.Sprintf("leastconn, maxconn %d, timeout queue %v", p.MaxConn, p.Queue)
}

// proxy is a Proxy at work.
type proxy struct {
	Proxy
	w      *World
	excess float64 // of the bucket, in requests
	at     time.Duration
	open   []int // requests at each engine
	turn   int
	queue  []*call
}

func newProxy(w *World) *proxy {
	return &proxy{Proxy: *w.Proxy, w: w, open: make([]int, len(w.engines))}
}

func (p *proxy) enter(c *call) {
	if p.Rate > 0 && !p.leak() {
		p.w.refuse(c, 0, "")
		return
	}
	if e := p.least(); e != nil && len(p.queue) == 0 {
		p.send(c, e)
		return
	}
	c.waiting = true
	p.queue = append(p.queue, c)
	p.w.at(p.w.now+p.Queue, func() {
		if c.waiting {
			p.drop(c)
			p.w.refuse(c, 0, "")
		}
	})
}

// leak says whether the bucket has room for one more, as ngx_http_limit_req does.
func (p *proxy) leak() bool {
	excess := max(0, p.excess-p.Rate*(p.w.now-p.at).Seconds()+1)
	if excess > float64(p.Burst)+1 {
		return false
	}
	p.excess, p.at = excess, p.w.now
	return true
}

// least is the engine with the fewest requests, in turn among equals, or nil.
func (p *proxy) least() *virtualEngine {
	var best *virtualEngine
	for i := range p.w.engines {
		e := p.w.engines[(p.turn+i)%len(p.w.engines)]
		if e.down || p.MaxConn > 0 && p.open[e.index] >= p.MaxConn {
			continue
		}
		if best == nil || p.open[e.index] < p.open[best.index] {
			best = e
		}
	}
	p.turn++
	return best
}

func (p *proxy) send(c *call, e *virtualEngine) {
	c.waiting = false
	c.try.Admitted = p.w.now
	p.open[e.index]++
	p.w.start(c, e)
}

// drop takes an attempt out of the queue.
func (p *proxy) drop(c *call) {
	c.waiting = false
	p.queue = slices.DeleteFunc(p.queue, func(x *call) bool { return x == c })
}

func (p *proxy) left(c *call) { p.drop(c) }

func (p *proxy) ended(c *call, _ inference.Verdict) {
	p.open[c.engine.index]--
	for len(p.queue) > 0 {
		e := p.least()
		if e == nil {
			return
		}
		next := p.queue[0]
		p.queue = p.queue[1:]
		p.send(next, e)
	}
}
