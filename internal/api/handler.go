package api

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// maxFields bounds the number of header fields of a request.
const maxFields = 256

// routes maps a path without its optional /v1 to its surface.
var routes = func() map[string]inference.Surface {
	m := make(map[string]inference.Surface)
	for _, s := range inference.Surfaces() {
		m[strings.TrimPrefix(s.Path(), "/v1")] = s
	}
	return m
}()

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	received := time.Now()
	if c, ok := r.Context().Value(connKey{}).(*frontConn); ok {
		c.handled.Store(true)
		defer func() {
			c.begun.Store(false)
			c.handled.Store(false)
		}()
	}
	cfg := s.cfg.Load()
	req := &inference.Request{ID: requestID(r.Header), Received: received, Header: r.Header, RawQuery: r.URL.RawQuery}
	rw.Header()["X-Request-Id"] = []string{req.ID}
	if r.ProtoMajor == 1 && len(r.TransferEncoding) > 0 {
		// A length beside the coding is gone by now. A connection on which somebody
		// else may have counted differently is not used again.
		rw.Header().Set("Connection", "close")
	}
	w := &writer{w: rw.(conn), req: req, stall: cfg.WriteStallTimeout, armed: received}
	_ = w.w.SetWriteDeadline(received.Add(w.stall)) // where it cannot be set, Write says so
	if s.serveRequest(w, r, cfg) {
		panic(http.ErrAbortHandler) // net/http's way to end a connection without ending its answer
	}
}

// serveRequest answers one request and says whether its connection must be
// aborted.
func (s *Server) serveRequest(w *writer, r *http.Request, cfg *Config) (abort bool) {
	path := strings.TrimPrefix(r.URL.Path, "/v1")
	surface, ok := routes[path]
	switch {
	case ok:
		w.req.Surface = surface
		if r.Method != http.MethodPost {
			w.w.Header().Set("Allow", http.MethodPost)
		}
	case path == feedbackPath && s.parts.Feedback != nil:
		if r.Method != http.MethodPost {
			w.w.Header().Set("Allow", http.MethodPost)
		}
	case path == "/models" || strings.HasPrefix(path, "/models/"):
		return s.serveModels(w, r, strings.TrimPrefix(path[len("/models"):], "/"))
	case cfg.Probes && s.parts.Probes != nil && (r.URL.Path == "/livez" || r.URL.Path == "/readyz"):
		s.parts.Probes.ServeHTTP(w.w, r)
		return false
	default:
		err := s.checkAddress(w, peerIP(r.RemoteAddr))
		if err == nil {
			err = inference.Errorf(inference.CodeNotFound, "unknown path %q", r.URL.Path)
		}
		s.fail(w, err)
		return w.aborted
	}
	if err := s.judge(w, r); err != nil {
		s.refuseUnread(w, r, err, cfg)
		return w.aborted
	}
	body, err := s.readBody(w.w, r, cfg)
	defer body.release()
	if err != nil {
		s.refuseUnread(w, r, err, cfg)
		return w.aborted
	}
	w.read = time.Now()
	if !ok {
		s.serveFeedback(w, body.bytes)
		return w.aborted
	}
	s.answer(r.Context(), w, body.bytes)
	return w.aborted
}

// answer parses the body and hands the request to the gateway.
func (s *Server) answer(ctx context.Context, w *writer, body []byte) {
	if err := s.parse(w.req, body); err != nil {
		s.fail(w, err)
		return
	}
	if !w.caller.May(w.req.Model) {
		s.fail(w, unknownModel(w.req.Model))
		return
	}
	if s.parts.Tracing != nil {
		ctx, w.req.Header = s.parts.Tracing.Start(ctx, w.req.Header, w.req)
	}
	rec := s.parts.Serve(ctx, w.req, w)
	if s.parts.Tracing != nil {
		s.parts.Tracing.Finish(ctx, rec)
	}
}

// fail answers a request that never reaches the gateway, and records it.
func (s *Server) fail(w *writer, err error) {
	e, ok := errors.AsType[*inference.Error](err)
	if !ok {
		e = inference.Errorf(inference.CodeInternal, "internal error")
		e.Err = err
	}
	w.Fail(e)
	rec := inference.Record{Request: w.req, Code: e.Code, Reason: e.Reason, Status: Status(e.Code), Duration: time.Since(w.req.Received)}
	s.parts.Record(&rec)
}

// judge is checkHead, or what the other front has found already.
func (s *Server) judge(w *writer, r *http.Request) error {
	c, ok := r.Context().Value(connKey{}).(*frontConn)
	if !ok || c.judged == nil {
		return s.checkHead(w, r.Method, peerIP(r.RemoteAddr))
	}
	j := c.judged
	c.judged = nil
	w.req.ClientIP = j.w.req.ClientIP
	w.sentBy(j.w.caller)
	return j.err
}

// checkHead judges a request by its head alone, before its body is read.
func (s *Server) checkHead(w *writer, method string, peer netip.Addr) error {
	req := w.req
	if err := s.checkAddress(w, peer); err != nil {
		return err
	}
	if method != http.MethodPost {
		return inference.Errorf(inference.CodeMethodNotAllowed, "method %s is not allowed here; use POST", method)
	}
	if fields(req.Header) > maxFields {
		return inference.Errorf(inference.CodeHeadTooLarge, "the request has more than %d header fields", maxFields)
	}
	if s.stopping.Load() {
		e := inference.Errorf(inference.CodeDraining, "the gateway is stopping")
		e.RetryAfter = time.Second
		return e
	}
	if err := s.checkKey(w); err != nil {
		return err
	}
	if ct := req.Header.Get("Content-Type"); ct != "" && ct != "application/json" {
		if kind, _, err := mime.ParseMediaType(ct); err != nil || kind != "application/json" {
			return inference.Errorf(inference.CodeUnsupportedMedia, "content type %q is not supported; use application/json", ct)
		}
	}
	if ce := req.Header.Get("Content-Encoding"); ce != "" && ce != "identity" {
		return inference.Errorf(inference.CodeUnsupportedMedia, "content encoding %q is not supported", ce)
	}
	return nil
}

// checkAddress finds out whether the address of a request may send it now. It comes
// before everything else: who guesses keys or paths is limited too, and a signature costs
// more to judge than an address.
func (s *Server) checkAddress(w *writer, peer netip.Addr) error {
	w.req.ClientIP = s.proxies.Load().clientIP(peer, w.req.Header)
	if s.parts.Limits == nil {
		return nil
	}
	return s.parts.Limits.Admit(w.req.Received, w.req.ClientIP)
}

// checkKey finds out who sends a request.
func (s *Server) checkKey(w *writer) error {
	caller, err := s.parts.Identity.Identify(w.req.Header)
	if err != nil {
		return err
	}
	w.sentBy(caller)
	return nil
}

// fields is the number of header fields.
func fields(h http.Header) (n int) {
	for _, values := range h {
		n += len(values)
	}
	return n
}

// parse completes the request from its body.
func (s *Server) parse(req *inference.Request, body []byte) error {
	fields, err := wire.ScanRequest(req.Surface, body)
	if err != nil {
		return err
	}
	req.Body, req.Fields = body, fields
	readHints(req, s.parts.Timeout())
	return nil
}

// refuseUnread answers a request whose body was not read to its end. A client
// that is still sending is given the time to read the answer; its connection is
// not used again.
func (s *Server) refuseUnread(w *writer, r *http.Request, err error, cfg *Config) {
	if r.ContentLength == 0 {
		s.fail(w, err)
		return
	}
	w.w.Header().Set("Connection", "close")
	if s.fail(w, err); !w.aborted {
		discard(w.w, r, int64(cfg.MaxBody))
	}
}

// serveModels answers GET /v1/models and GET /v1/models/{id}.
func (s *Server) serveModels(w *writer, r *http.Request, id string) (abort bool) {
	if err := s.checkAddress(w, peerIP(r.RemoteAddr)); err != nil {
		s.refuseUnread(w, r, err, s.cfg.Load())
		return w.aborted
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.w.Header().Set("Allow", "GET, HEAD")
		s.fail(w, inference.Errorf(inference.CodeMethodNotAllowed, "method %s is not allowed here; use GET", r.Method))
		return w.aborted
	}
	if err := s.checkKey(w); err != nil {
		s.refuseUnread(w, r, err, s.cfg.Load())
		return w.aborted
	}
	names := slices.DeleteFunc(s.parts.Models(), func(name string) bool { return !w.caller.May(name) })
	var v any
	if id != "" {
		if !slices.Contains(names, id) {
			s.fail(w, unknownModel(id))
			return w.aborted
		}
		v = s.model(id)
	} else {
		list := make([]model, len(names))
		for i, name := range names {
			list[i] = s.model(name)
		}
		v = struct {
			Object string  `json:"object"`
			Data   []model `json:"data"`
		}{"list", list}
	}
	body, err := json.Marshal(v)
	if err != nil {
		s.fail(w, err)
		return w.aborted
	}
	head := inference.Head{Status: http.StatusOK, Length: int64(len(body)), Fields: []inference.HeaderField{{Name: "Content-Type", Value: "application/json"}}}
	if err := w.Head(&head); err == nil && r.Method == http.MethodGet {
		_ = w.Write(body, false) // a client that left has no use for an error
	}
	return false
}

// unknownModel is the error for a model that is not there, or not for this caller:
// which of the two is nobody's business.
func unknownModel(name string) error {
	if len(name) > maxModel {
		name = strings.ToValidUTF8(name[:maxModel], "") + "..."
	}
	e := inference.Errorf(inference.CodeModelNotFound, "the model %q does not exist or is not available to you", name)
	e.Param, e.NoRetry = "model", true
	return e
}

// maxModel bounds how much of a model's name comes back in a message, in bytes.
const maxModel = 128

// model is one element of the list of models.
type model struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

// model describes a model by its name.
func (s *Server) model(name string) model { return model{name, "model", s.began, "spillway"} }

// requestID is the client's own id where it can be used, or a new one.
func requestID(h http.Header) string {
	if v := h["X-Request-Id"]; len(v) == 1 && len(v[0]) > 0 && len(v[0]) <= 128 && printable(v[0]) {
		return v[0]
	}
	return newRequestID()
}

// newRequestID makes an id of 64 random bits.
func newRequestID() string {
	var b [20]byte
	id := append(b[:0], "req_"...)
	v := rand.Uint64()
	for range 16 {
		id = append(id, "0123456789abcdef"[v&15])
		v >>= 4
	}
	return string(id)
}

// printable says whether s is visible ASCII.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// statusText is the reason phrase of a status, including nginx's 499.
func statusText(status int) string {
	if status == 499 {
		return "Client Closed Request"
	}
	return http.StatusText(status)
}
