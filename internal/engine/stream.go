package engine

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"
)

// maxBacklog bounds the bytes held for a client that reads too slowly, per stream. Beyond it the client is cut.
const maxBacklog = 4 << 20

// outcome is how a stream ends.
type outcome uint8

const (
	open     outcome = iota
	complete         // every token is out
	cut              // a fault breaks the connection
	lost             // the client does not read, or writing fails
	left             // the client hung up
	stopped          // the engine ended
)

// stream is one request between its handler and the step loop.
type stream struct {
	seq      Sequence
	answer   answer
	framer   framer // nil for embeddings
	plan     plan
	streamed bool // events go out as they come; otherwise only counted
	thinking form
	words    form
	arrived  time.Time
	wake     chan struct{} // of capacity 1: there is something for the handler
	direct   *direct       // nil: everything goes through the handler

	mu struct {
		sync.Mutex
		outcome outcome
		blocked bool // events go to the backlog: the head is not out, the socket is full, or there is no direct way
		held    bool // a stall: what came after it began waits in the backlog
		early   int  // bytes at the backlog's front that came before the stall
		closed  bool // the handler is about to return
		backlog []byte
		spare   []byte
		resume  *time.Timer
		events  int
		tokens  int
		last    time.Time
	}
}

// pen is the step loop's writing hand: a buffer that every event is rendered into, and what was counted meanwhile.
type pen struct {
	buf    []byte
	events uint64
	meter  *meter
}

// headroom leaves place for a chunk's length before the event: 8 hex digits and CRLF.
const headroom = 10

func (p *pen) start() { p.buf = p.buf[:headroom] }

// chunk wraps the event into an HTTP/1.1 chunk.
func (p *pen) chunk() []byte {
	const digits = "0123456789abcdef"
	n := len(p.buf) - headroom
	i := headroom - 2
	p.buf[i], p.buf[i+1] = '\r', '\n'
	for ; n > 0; n >>= 4 {
		i--
		p.buf[i] = digits[n&15]
	}
	p.buf = append(p.buf, '\r', '\n')
	return p.buf[i:]
}

// token is called by the step loop when the sequence has one more token.
func (s *stream) token(p *pen, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed || s.mu.outcome != open {
		return
	}
	n := s.mu.tokens
	s.mu.tokens++
	if n == 0 {
		s.answer.cached = s.seq.Cached()
		p.meter.firstToken.Observe(now.Sub(s.arrived).Seconds())
		p.meter.queueTime.Observe(s.seq.Queued().Seconds())
		if s.streamed {
			s.sendAll(p, s.framer.open(&s.answer))
		}
	} else {
		p.meter.interToken.Observe(now.Sub(s.mu.last).Seconds())
	}
	s.mu.last = now
	p.start()
	if s.streamed {
		f := &s.words
		if n < s.answer.thinking {
			f = &s.thinking
		}
		p.buf = f.append(p.buf, s.mu.events, s.answer.text, n)
	}
	s.send(p)
}

// finish is called by the step loop after the last token.
func (s *stream) finish(p *pen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed || s.mu.outcome != open {
		return
	}
	s.answer.cached = s.seq.Cached()
	if s.streamed {
		events := s.framer.close(&s.answer, s.mu.events)
		if s.plan.missingDone {
			events = events[:len(events)-1]
		}
		s.sendAll(p, events)
	} else if s.framer == nil { // an embedding is one event
		p.start()
		s.send(p)
	}
	if s.mu.outcome == open {
		s.mu.outcome = complete
	}
	s.signal()
}

func (s *stream) sendAll(p *pen, events []string) {
	for _, e := range events {
		p.start()
		p.buf = append(p.buf, e...)
		s.send(p)
	}
}

// send counts the event in the pen, lets the faults act and writes it. The caller holds s.mu.
func (s *stream) send(p *pen) {
	if s.mu.outcome != open {
		return
	}
	n := s.mu.events
	if n == s.plan.stallAt {
		s.hold()
	}
	if n == s.plan.cutAt {
		s.mu.outcome = cut
		s.signal()
		return
	}
	if n == s.plan.malformedAt && s.streamed {
		p.start()
		p.buf = append(p.buf, `data: {"id":"chatcmpl-`+"\n\n"...)
	}
	s.mu.events++
	p.events++
	if !s.streamed || (s.mu.held && s.plan.stallFor == 0) {
		return
	}
	data := p.buf[headroom:]
	if s.direct != nil {
		data = p.chunk()
	}
	if !s.mu.blocked {
		wrote, err := s.direct.write(data)
		if err != nil {
			s.mu.outcome = lost
			s.signal()
			return
		}
		if data = data[wrote:]; len(data) == 0 {
			return
		}
		s.mu.blocked = true
	}
	if len(s.mu.backlog)+len(data) > maxBacklog {
		s.mu.outcome, s.mu.backlog = lost, nil
		s.signal()
		return
	}
	s.mu.backlog = append(s.mu.backlog, data...)
	s.signal()
}

// hold begins a stall. The caller holds s.mu.
func (s *stream) hold() {
	s.mu.held, s.mu.blocked, s.mu.early = true, true, len(s.mu.backlog)
	if s.plan.stallFor == 0 {
		return
	}
	s.mu.resume = time.AfterFunc(s.plan.stallFor, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mu.held = false
		s.signal()
	})
}

// signal wakes the handler.
func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take hands the backlog to the handler, which owns it until its next take; without a backlog, the outcome. When
// there is neither, the way is free for direct writes.
func (s *stream) take() ([]byte, outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ready, stalled := len(s.mu.backlog), s.mu.held && (s.mu.outcome == open || s.mu.outcome == complete)
	if stalled {
		ready, s.mu.early = s.mu.early, 0
	}
	if data := s.mu.backlog; ready > 0 {
		s.mu.backlog, s.mu.spare = append(s.mu.spare[:0], data[ready:]...), data
		return data[:ready], open
	}
	if stalled {
		return nil, open
	}
	s.mu.blocked = s.direct == nil
	return nil, s.mu.outcome
}

// close keeps the step loop off the connection from now on.
func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.closed = true
	if s.mu.resume != nil {
		s.mu.resume.Stop()
	}
}

// connect chooses the direct way to a plain HTTP/1.1 connection, before the sequence is submitted: from then on every
// event is framed as a chunk. It returns the connection, or nil when there is no direct way. The way opens when the
// handler first finds its backlog empty. Then the head is out, net/http has nothing in its buffers, and it writes
// nothing more before the handler returns.
func (s *stream) connect(l *link) *link {
	if l == nil {
		return nil
	}
	if s.direct = newDirect(l); s.direct == nil {
		return nil
	}
	return l
}

// follow is the handler's part: it writes what the step loop could not and returns when the stream is over.
func (s *stream) follow(ctx context.Context, out *slowWriter, done <-chan struct{}) outcome {
	for {
		data, end := s.take()
		if len(data) > 0 {
			if err := out.write(ctx, data); err != nil {
				return lost
			}
			continue
		}
		if end != open {
			return end
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			if data, end := s.take(); len(data) == 0 && end == complete {
				return end // it left with the whole answer
			}
			return left
		case <-done:
			return stopped
		}
	}
}

// slowWriter is the handler's way to the client: it waits for a full socket, but neither beyond the time-out nor
// beyond the client's departure.
type slowWriter struct {
	link    *link // nil: through net/http
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
}

func (o *slowWriter) write(ctx context.Context, data []byte) error {
	o.deadline(time.Now().Add(o.timeout))
	release := context.AfterFunc(ctx, func() { o.deadline(time.Unix(1, 0)) })
	var err error
	if o.link != nil {
		_, err = o.link.Write(data)
	} else if _, err = o.w.Write(data); err == nil {
		err = o.control.Flush()
	}
	if !release() {
		return errors.Join(ctx.Err(), err)
	}
	o.deadline(time.Time{})
	return err
}

func (o *slowWriter) deadline(t time.Time) {
	if o.link != nil {
		_ = o.link.SetWriteDeadline(t) // a closed connection shows in the write
		return
	}
	_ = o.control.SetWriteDeadline(t) // a recorder has no deadlines and never blocks
}
