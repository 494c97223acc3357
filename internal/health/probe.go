package health

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Bounds on what is read of one answer.
const (
	maxBody    = 1 << 20
	maxListing = 4 << 20 // of models and of metrics, which are read as they come
)

// errUnknown marks what says nothing about an instance's health: a value that is
// not there, an instance that is busy.
var errUnknown = errors.New("not known")

// pool is a Pool made ready for use.
type pool struct {
	Pool
	name string
	body *regexp.Regexp // nil takes any
	rule []selector     // of the rule's metric; nil without one
}

// prepare makes a pool ready.
func (m *Monitor) prepare(name string, given Pool) (*pool, error) {
	p := &pool{Pool: given, name: name}
	if err := errors.Join(p.Config.Validate(), p.Metrics.Validate()); err != nil {
		return nil, err
	}
	if p.Transport == nil {
		p.Transport = m.plain
	}
	if p.Dial == nil {
		p.Dial = m.dialer.DialContext
	}
	if p.Config.Active.Body != "" {
		p.body = regexp.MustCompile(p.Config.Active.Body) // validated above
	}
	if r := p.Config.Active.Rule; r != nil && r.Metric != "" {
		p.rule = []selector{{name: r.Metric, labels: r.Labels}}
	}
	return p, nil
}

// probe asks the instance once, as configured. A nil error passes, an error that
// is errUnknown says nothing. The round trip is 0 where the probe does not show
// it.
func (p *pool) probe(ctx context.Context, j *job) (roundTrip time.Duration, err error) {
	a := &p.Config.Active
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	switch a.Type {
	case CheckTCP:
		roundTrip, err = p.connect(ctx, j)
	case CheckHTTP:
		roundTrip, err = p.fetch(ctx, j)
	case CheckGenerate:
		err = p.generate(ctx, j)
	}
	if err == nil && a.Rule != nil {
		err = p.holds(ctx, j, a.Rule)
	}
	return roundTrip, err
}

// connect is the tcp probe.
func (p *pool) connect(ctx context.Context, j *job) (time.Duration, error) {
	begun := time.Now()
	c, err := p.Dial(ctx, "tcp", j.url.Host)
	if err != nil {
		return 0, err
	}
	took := time.Since(begun)
	return took, c.Close()
}

// fetch is the http probe.
func (p *pool) fetch(ctx context.Context, j *job) (time.Duration, error) {
	a := &p.Config.Active
	var sent, first time.Time
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest:         func(httptrace.WroteRequestInfo) { sent = time.Now() },
		GotFirstResponseByte: func() { first = time.Now() },
	})
	begun := time.Now()
	res, err := p.send(ctx, j, http.MethodGet, a.Path, nil)
	if err != nil {
		return 0, err
	}
	defer discard(res.Body)
	if !a.passes(res.StatusCode) {
		return 0, fmt.Errorf("status %d", res.StatusCode)
	}
	if p.body != nil {
		body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
		if err != nil {
			return 0, fmt.Errorf("body: %w", err)
		}
		if !p.body.Match(body) {
			return 0, fmt.Errorf("body does not match %s", p.body)
		}
	}
	if took := time.Since(begun); a.MaxLatency > 0 && took > a.MaxLatency {
		return 0, fmt.Errorf("answered after %v, the bound is %v", took.Round(time.Millisecond), a.MaxLatency)
	}
	if sent.IsZero() || first.Before(sent) { // another kind of transport, or an answer ahead of the request
		return 0, nil
	}
	return first.Sub(sent), nil
}

// passes says whether the http probe takes the status.
func (a *Active) passes(status int) bool {
	for _, s := range a.Status {
		if s.Low <= status && status <= s.High {
			return true
		}
	}
	return false
}

// generate is the probe that asks for one token. A busy instance is not broken.
func (p *pool) generate(ctx context.Context, j *job) error {
	body, err := json.Marshal(map[string]any{
		"model": p.Config.Active.Model, "max_tokens": 1,
		"messages": []map[string]string{{"role": "user", "content": "ping"}},
	})
	if err != nil {
		return err
	}
	res, err := p.send(ctx, j, http.MethodPost, "/v1/chat/completions", body)
	if err != nil {
		return err
	}
	defer discard(res.Body)
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return fmt.Errorf("status %d: %w", res.StatusCode, errUnknown)
	default:
		return fmt.Errorf("status %d", res.StatusCode)
	}
	var answer struct {
		Choices []json.RawMessage `json:"choices"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxBody)).Decode(&answer); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if len(answer.Choices) == 0 {
		return errors.New("answer without choices")
	}
	return nil
}

// holds checks the business rule.
func (p *pool) holds(ctx context.Context, j *job, r *Rule) error {
	path := r.Path
	if path == "" {
		path = "/metrics"
	}
	res, err := p.send(ctx, j, http.MethodGet, path, nil)
	if err != nil {
		return fmt.Errorf("rule: %w", err)
	}
	defer discard(res.Body)
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("rule: %s: status %d", path, res.StatusCode)
	}
	what, value := r.Metric, 0.0
	if r.Metric != "" {
		totals, err := scan(io.LimitReader(res.Body, maxListing+1), p.rule)
		if err != nil {
			return fmt.Errorf("rule: %s: %w", path, err)
		}
		if totals[0].series == 0 {
			return fmt.Errorf("rule: %s has no metric %s: %w", path, what, errUnknown)
		}
		value = totals[0].sum
	} else {
		what = r.JSON
		if value, err = field(io.LimitReader(res.Body, maxBody), r.JSON); err != nil {
			return fmt.Errorf("rule: %s: %w", path, err)
		}
	}
	if !comparisons[r.Compare](value, r.Value) {
		return fmt.Errorf("rule: %s is %v, not %s %v", what, value, r.Compare, r.Value)
	}
	return nil
}

// field finds a number in a JSON document.
func field(body io.Reader, path string) (float64, error) {
	var v any
	if err := json.NewDecoder(body).Decode(&v); err != nil {
		return 0, fmt.Errorf("body: %w", err)
	}
	for key := range strings.SplitSeq(path, ".") {
		switch in := v.(type) {
		case map[string]any:
			v = in[key]
		case []any:
			n, err := strconv.Atoi(key)
			if err != nil || n < 0 || n >= len(in) {
				return 0, fmt.Errorf("no field %s: %w", path, errUnknown)
			}
			v = in[n]
		default:
			return 0, fmt.Errorf("no field %s: %w", path, errUnknown)
		}
	}
	switch value := v.(type) {
	case float64:
		return value, nil
	case bool:
		if value {
			return 1, nil
		}
		return 0, nil
	}
	return math.NaN(), fmt.Errorf("field %s is not a number: %w", path, errUnknown)
}

// send asks the instance for path, below its base path. Redirects are not
// followed. The caller gives the body to discard.
func (p *pool) send(ctx context.Context, j *job, method, path string, body []byte) (*http.Response, error) {
	ref, err := url.Parse(path)
	if err != nil {
		return nil, fmt.Errorf("path %q: %w", path, err)
	}
	u := j.url
	u.Path, u.RawQuery = j.url.Path+ref.Path, ref.RawQuery
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for name, values := range p.Header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", "spillway-health")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	} else {
		req.Body = nil
		req.Header.Set("Accept", "application/json, text/plain;version=0.0.4;q=0.9, */*;q=0.1")
	}
	return p.Transport.RoundTrip(req)
}

// discard reads the little that may be left, so that the connection can be used
// again, and closes the body.
func discard(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, 64<<10)
	_ = body.Close()
}
