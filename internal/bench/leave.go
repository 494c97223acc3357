package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// manner is a way in which clients leave.
type manner struct {
	name   string
	flags  []string // of the engines
	stream bool
	events int // data events that are read before
	after  time.Duration
}

// manners lists them. Each client asks for more than it waits for.
func manners() []manner {
	quick := []string{"--step-base", "5ms", "--step-per-seq", "10us"}
	return []manner{
		{"mid-stream", quick, true, 3, 0},
		{"before the first token", []string{"--step-base", "3s"}, true, 0, 50 * time.Millisecond},
		{"in a silent stream", append(quick, "--faults", `{"stall":{"probability":1,"after_events":3}}`), true, 3, 50 * time.Millisecond},
		{"answer pending", quick, false, 0, 50 * time.Millisecond},
	}
}

// playLeave lets clients leave in every manner and looks for what is left.
func playLeave(ctx context.Context, r *rig) error {
	for _, m := range manners() {
		r.say("%s: %d clients leave", m.name, r.Count)
		if err := r.start(ctx, 2, append(m.flags, "--max-seqs", "1024")...); err != nil {
			return err
		}
		before, err := r.gateway.footprint(ctx)
		if err != nil {
			return err
		}
		if err := r.leave(ctx, m); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		var canceled float64
		if err := settled(ctx, func() (bool, error) {
			canceled = 0
			for _, u := range r.engines.urls() {
				metrics, err := r.gateway.metrics(ctx, u)
				if err != nil {
					return false, err
				}
				canceled += metrics.sum("engine_cancelled_total")
			}
			return canceled >= float64(r.Count), nil
		}); err != nil {
			return err
		}
		r.expect(m.name+": requests cancelled at the instances", canceled, Exactly, float64(r.Count), "")
		if err := r.expectBack(ctx, before); err != nil {
			return err
		}
		if err := r.expectZero(ctx); err != nil {
			return err
		}
	}
	return nil
}

// leave sends the clients, a few at a time.
func (r *rig) leave(ctx context.Context, m manner) error {
	var wg sync.WaitGroup
	slots, errs := make(chan struct{}, leaveMost), make(chan error, r.Count)
	for range r.Count {
		slots <- struct{}{}
		wg.Go(func() {
			if err := r.leaveOnce(ctx, m); err != nil {
				errs <- err
			}
			<-slots
		})
	}
	wg.Wait()
	close(errs)
	return <-errs // the first, or nil
}

// leaveOnce asks, reads as much as the manner says, and closes the connection.
func (r *rig) leaveOnce(ctx context.Context, m manner) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if m.events == 0 {
		time.AfterFunc(m.after, cancel)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := r.post(ctx, transport, m.stream, 4000)
	if err != nil {
		if m.events == 0 && ctx.Err() != nil {
			return nil // left as it should, while it waited
		}
		return err
	}
	defer res.Body.Close()
	seen := 0
	for lines := bufio.NewScanner(res.Body); seen < m.events && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "data:") {
			seen++
		}
	}
	if seen < m.events || m.events == 0 {
		return fmt.Errorf("status %d and %d events, which is not what the client was to see", res.StatusCode, seen)
	}
	return pause(ctx, m.after)
}

// post sends a chat request that asks for a number of tokens.
func (r *rig) post(ctx context.Context, transport http.RoundTripper, stream bool, tokens int) (*http.Response, error) {
	body := fmt.Appendf(nil, `{"model":%q,"stream":%t,"max_tokens":%d,"messages":[{"role":"user","content":"hello"}]}`, model, stream, tokens)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.gateway.url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Engine-Output-Tokens", fmt.Sprint(tokens))
	return transport.RoundTrip(req)
}

// ask sends a request for one token and reads its answer, so that the connection
// can be used again.
func (r *rig) ask(ctx context.Context, transport http.RoundTripper) error {
	res, err := r.post(ctx, transport, false, 1)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return nil
}
