package engine

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// route is what one path serves, by method. Paths of a surface exist with and without /v1.
type route map[string]http.HandlerFunc

func (e *Engine) table() map[string]route {
	routes := map[string]route{
		"/health":  {http.MethodGet: e.health},
		"/metrics": {http.MethodGet: e.metrics.ServeHTTP},
		"/faults":  {http.MethodGet: e.showFaults, http.MethodPost: e.setFaults},
	}
	add := func(path, method string, h http.HandlerFunc) {
		routes[path] = route{method: h}
		routes["/v1"+path] = route{method: h}
	}
	add("/models", http.MethodGet, e.listModels)
	for _, m := range e.cfg.Models {
		add("/models/"+m, http.MethodGet, func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, 200, e.appendModel(nil, m))
		})
	}
	paths := map[string]string{
		SurfaceChat: "/chat/completions", SurfaceCompletions: "/completions", SurfaceEmbeddings: "/embeddings",
		SurfaceMessages: "/messages", SurfaceResponses: "/responses",
	}
	for _, surface := range e.cfg.Surfaces {
		add(paths[surface], http.MethodPost, func(w http.ResponseWriter, r *http.Request) { e.answer(w, r, surface) })
	}
	return routes
}

// ServeHTTP serves all surfaces. On a broken stream it panics with http.ErrAbortHandler, net/http's way to break off a
// connection.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rt, ok := e.routes[r.URL.Path]
	if !ok {
		p := &problem{status: 404, kind: "invalid_request_error", code: `"unknown_url"`}
		p.message = "Unknown request URL: " + r.Method + " " + r.URL.Path
		p.write(w, "")
		return
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	h, ok := rt[method]
	if !ok {
		allowed := make([]string, 0, len(rt))
		for m := range rt {
			allowed = append(allowed, m)
		}
		slices.Sort(allowed)
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		p := &problem{status: 405, kind: "invalid_request_error", code: `"method_not_supported"`}
		p.message = "Not allowed to " + r.Method + " on " + r.URL.Path
		p.write(w, "")
		return
	}
	h(w, r)
}

// answer is the life of one request of any surface.
func (e *Engine) answer(w http.ResponseWriter, r *http.Request, surface string) {
	if id := r.Header.Get("X-Request-Id"); id != "" {
		w.Header().Set("X-Request-Id", id)
	}
	body, bad := e.readPayload(w, r)
	if bad == nil {
		bad = e.check(body)
	}
	var s *stream
	if bad == nil {
		s, bad = e.newStream(r, surface, body)
	}
	if bad != nil {
		bad.write(w, surface)
		return
	}
	if !e.disturb(w, r, surface, s.plan) {
		return
	}
	out := &slowWriter{w: w, control: http.NewResponseController(w), timeout: e.cfg.WriteTimeout}
	if s.streamed && r.ProtoMajor == 1 && r.ProtoAtLeast(1, 1) {
		out.link = s.connect(linkOf(r.Context()))
	}
	if err := e.submit(s); err != nil {
		e.refuse(w, surface, s.streamed, err)
		return
	}
	end := e.attend(r.Context(), out, s)
	switch {
	case end == complete && s.streamed:
		return // net/http ends the body
	case end == complete:
		e.writeWhole(w, s, body)
	case end == stopped && !s.streamed:
		(&problem{status: 503, kind: "server_error", message: "The engine is stopping"}).write(w, surface)
	default:
		e.breakOff(w, r, s, end)
	}
}

// newStream prepares a request's sequence, text and event forms.
func (e *Engine) newStream(r *http.Request, surface string, body *payload) (*stream, *problem) {
	s := &stream{arrived: time.Now(), wake: make(chan struct{}, 1)}
	s.seq.Owner = s
	s.mu.blocked = true // until the response's head is out
	var prompt []byte
	var bad *problem
	if surface == SurfaceEmbeddings {
		prompt, bad = embeddingText(body)
	} else {
		prompt, bad = promptText(surface, body)
	}
	if bad != nil {
		return nil, bad
	}
	s.answer = answer{
		id:      strconv.FormatInt(e.epoch.UnixNano(), 16) + "-" + strconv.FormatUint(e.number.Add(1), 16),
		created: s.arrived.Unix(), model: e.models[body.Model], text: newText(prompt),
		prompt: Tokens(len(prompt)), usage: body.StreamOptions.IncludeUsage,
	}
	a := &s.answer
	s.seq.Prompt = a.prompt
	if e.cfg.Batching.PrefixCache {
		s.seq.Blocks = Chain(nil, body.Model, prompt)
	}
	if surface == SurfaceEmbeddings {
		s.plan = e.faults.draw()
		return s, nil
	}
	if a.output, a.length, bad = e.outputLength(r, surface, body, a.text); bad != nil {
		return nil, bad
	}
	if surface == SurfaceChat && strings.Contains(body.Model, "reason") {
		a.thinking = a.output / 2
	}
	s.plan = e.faults.draw()
	s.seq.Output = a.output
	s.framer, s.streamed = framerOf(surface), body.Stream
	if s.streamed {
		s.thinking, s.words = s.framer.forms(a)
	}
	return s, nil
}

// disturb lets the faults act that come before the queue and reports whether the request goes on.
func (e *Engine) disturb(w http.ResponseWriter, r *http.Request, surface string, p plan) bool {
	if p.delay > 0 {
		timer := time.NewTimer(p.delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
			e.abandon()
			panic(http.ErrAbortHandler)
		case <-e.done:
			panic(http.ErrAbortHandler)
		}
	}
	if p.reset {
		if l := linkOf(r.Context()); l != nil {
			l.abrupt()
		}
		panic(http.ErrAbortHandler)
	}
	if p.status == 0 {
		return true
	}
	(&problem{
		status: p.status, kind: "server_error", code: `"injected_fault"`, message: "This error was asked for by a fault",
	}).write(w, surface)
	return false
}

// refuse answers a request that the batch did not take.
func (e *Engine) refuse(w http.ResponseWriter, surface string, streamed bool, err error) {
	if errors.Is(err, ErrTooLong) {
		p := invalid("messages", "This model's maximum context length is "+
			strconv.Itoa(e.cfg.Batching.KVTokens)+" tokens: prompt and output together are longer.")
		p.code = `"context_length_exceeded"`
		p.write(w, surface)
		return
	}
	e.refused.Add(1)
	p, inStream := overloaded(e.cfg.Overload, streamed)
	if !inStream {
		p.write(w, surface)
		return
	}
	startStream(w)
	if surface == SurfaceMessages {
		_, _ = w.Write([]byte(event("error", string(p.anthropic()))))
		return
	}
	_, _ = w.Write([]byte("data: " + string(p.openAI()) + "\n\n" + doneEvent))
}

// startStream sends a stream's head.
func startStream(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
}

// attend stays with a queued request until it is over. Afterwards its work is out of the batch and the step loop does
// not touch its connection any more, on every path.
func (e *Engine) attend(ctx context.Context, out *slowWriter, s *stream) (end outcome) {
	end = lost
	defer func() { e.leave(s, end) }()
	if s.streamed {
		startStream(out.w)
		if err := out.control.Flush(); err != nil {
			return lost
		}
	}
	return s.follow(ctx, out, e.done)
}

// writeWhole sends an answer that is not streamed.
func (e *Engine) writeWhole(w http.ResponseWriter, s *stream, p *payload) {
	var body []byte
	if s.framer != nil {
		body = s.framer.body(make([]byte, 0, 640+TokenBytes*s.answer.output), &s.answer)
	} else {
		body = e.appendEmbeddings(nil, &s.answer, p)
	}
	if s.plan.malformedAt >= 0 {
		body = body[:len(body)/2]
	}
	writeJSON(w, http.StatusOK, body)
}

// breakOff ends a response that must not look complete. It does not return.
func (e *Engine) breakOff(w http.ResponseWriter, r *http.Request, s *stream, end outcome) {
	if end == cut && !s.streamed && s.framer != nil && !s.plan.cutReset {
		body := s.framer.body(nil, &s.answer)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush() // the abort follows either way
	}
	// A client that does not read would keep the socket's send queue alive for as long as it likes.
	if end == lost || (end == cut && s.plan.cutReset) {
		if l := linkOf(r.Context()); l != nil {
			l.abrupt()
		}
	}
	panic(http.ErrAbortHandler)
}

// health is GET /health: like vLLM's, an empty 200 while the engine lives, however long its queue is.
func (e *Engine) health(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(e.faults.health())
}

func (e *Engine) listModels(w http.ResponseWriter, _ *http.Request) {
	body := []byte(`{"object":"list","data":[`)
	for i, m := range e.cfg.Models {
		if i > 0 {
			body = append(body, ',')
		}
		body = e.appendModel(body, m)
	}
	writeJSON(w, 200, append(body, "]}"...))
}

func (e *Engine) appendModel(dst []byte, model string) []byte {
	dst = append(append(dst, `{"id":`...), e.models[model]...)
	dst = append(dst, `,"object":"model","created":`...)
	dst = strconv.AppendInt(dst, e.epoch.Unix(), 10)
	dst = append(dst, `,"owned_by":"spillway","max_model_len":`...)
	return append(strconv.AppendInt(dst, int64(e.cfg.Batching.KVTokens), 10), '}')
}
