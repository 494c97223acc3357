package usage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Times of the access log's writer.
const (
	flushEvery = 100 * time.Millisecond // a line waits no longer than this, and the write before it
	stopGrace  = 2 * time.Second        // for the last write
)

// sink is the bounded asynchronous writer of the access log: lines are copied
// into one buffer while the other is being written.
type sink struct {
	std   map[string]io.Writer // by destination
	log   *slog.Logger
	limit atomic.Int64  // bytes that may wait
	wake  chan struct{} // the buffer is no longer empty
	half  chan struct{} // the buffer is half full

	mu struct {
		sync.Mutex
		buf    []byte
		lines  uint64
		closed bool
	}
	out struct {
		sync.Mutex
		dest    string
		w       io.Writer
		file    *os.File // w, when it is ours to close
		torn    bool     // a write ended within a line
		failing bool
	}

	written, full, failed, late atomic.Uint64 // lines, and those that were dropped, by cause
}

// newSink returns a sink without a destination.
func newSink(parts Parts) *sink {
	s := &sink{
		std:  map[string]io.Writer{Stdout: parts.Stdout, Stderr: parts.Stderr, Off: io.Discard},
		log:  parts.Log.With("component", "usage"),
		wake: make(chan struct{}, 1),
		half: make(chan struct{}, 1),
	}
	s.out.w = io.Discard
	return s
}

// add copies a whole line into the buffer, or drops it.
func (s *sink) add(line []byte) {
	s.mu.Lock()
	before := len(s.mu.buf)
	after := before + len(line)
	limit := int(s.limit.Load())
	if s.mu.closed || after > limit {
		drops := &s.full
		if s.mu.closed {
			drops = &s.late
		}
		s.mu.Unlock()
		drops.Add(1)
		return
	}
	s.mu.buf = append(s.mu.buf, line...)
	s.mu.lines++
	s.mu.Unlock()
	if before == 0 {
		nudge(s.wake)
	}
	if before < limit/2 && after >= limit/2 {
		nudge(s.half)
	}
}

// nudge leaves one token in a channel.
func nudge(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// waiting is the number of bytes in the buffer.
func (s *sink) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.mu.buf)
}

// run writes until ctx ends, and then what is left.
func (s *sink) run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.loop(ctx)
	}()
	<-ctx.Done()
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case <-done:
		return nil
	case <-grace.C:
		return fmt.Errorf("access log: the last write did not end within %v", stopGrace)
	}
}

// loop is the writer's goroutine. It sleeps while there is nothing to write.
func (s *sink) loop(ctx context.Context) {
	var spare []byte
	for last := false; !last; {
		select {
		case <-ctx.Done():
		case <-s.wake:
			pause := time.NewTimer(flushEvery)
			select {
			case <-ctx.Done():
			case <-pause.C:
			case <-s.half:
			}
			pause.Stop()
		}
		last = ctx.Err() != nil
		spare = s.flush(spare, last)
	}
	s.out.Lock()
	defer s.out.Unlock()
	s.set("", io.Discard, nil)
}

// flush writes the buffer and returns it for the next turn; spare takes its
// place. last closes the sink.
func (s *sink) flush(spare []byte, last bool) []byte {
	s.mu.Lock()
	buf, lines := s.mu.buf, s.mu.lines
	s.mu.buf, s.mu.lines = spare[:0], 0
	s.mu.closed = last
	s.mu.Unlock()
	if lines > 0 {
		s.write(buf, lines)
	}
	if int64(cap(buf)) > 2*s.limit.Load() {
		return nil
	}
	return buf
}

// write writes whole lines. What cannot be written is counted; the log hears of
// the first failure and of the end of failing.
func (s *sink) write(p []byte, lines uint64) {
	s.out.Lock()
	defer s.out.Unlock()
	if s.out.torn {
		if _, err := s.out.w.Write([]byte{'\n'}); err == nil {
			s.out.torn = false
		}
	}
	n, err := s.out.w.Write(p)
	n = min(max(n, 0), len(p))
	if n > 0 {
		s.out.torn = p[n-1] != '\n'
	}
	good := lines
	if err != nil {
		good = uint64(bytes.Count(p[:n], []byte{'\n'}))
	}
	s.written.Add(good)
	s.failed.Add(lines - good)
	if failing := err != nil; failing != s.out.failing {
		s.out.failing = failing
		if failing {
			s.log.Error("the access log cannot be written; its lines are lost", "destination", s.out.dest, "err", err)
		} else {
			s.log.Info("the access log is written again", "destination", s.out.dest, "lines_lost", s.failed.Load())
		}
	}
}

// open makes dest the destination. A destination that stays is not opened again.
func (s *sink) open(dest string) error {
	s.out.Lock()
	defer s.out.Unlock()
	if dest == s.out.dest {
		return nil
	}
	if w, ok := s.std[dest]; ok {
		if w == nil {
			return fmt.Errorf("access_log: there is no %s", dest)
		}
		s.set(dest, w, nil)
		return nil
	}
	return s.openFile(dest)
}

// reopen opens the file of the present destination again.
func (s *sink) reopen() error {
	s.out.Lock()
	defer s.out.Unlock()
	if s.out.file == nil {
		return nil
	}
	return s.openFile(s.out.dest)
}

// openFile opens a file for appending and leaves the one before. The caller
// holds out.
func (s *sink) openFile(path string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("access_log: %w", err)
	}
	s.set(path, f, f)
	return nil
}

// set replaces the destination. The caller holds out.
func (s *sink) set(dest string, w io.Writer, file *os.File) {
	if old := s.out.file; old != nil {
		if err := old.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			s.log.Error("the access log was not closed cleanly", "destination", s.out.dest, "err", err)
		}
	}
	s.out.dest, s.out.w, s.out.file, s.out.torn = dest, w, file, false
}
