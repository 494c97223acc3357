// Package admin is the HTTP server for operators: probes, metrics, the state of
// the configuration and of the fleet, drains, reloads and the emergency switch, on
// a listener of its own that is not meant for clients.
//
// Everything is read when it is asked for; the package keeps no state but its
// configuration, which Apply replaces as a whole. Beyond loopback a bearer token or
// a certificate is required for all but the probes. Without either only requests that
// name loopback as their host are answered, and what a browser sends by itself is
// never enough to change something at the wish of another site's page. /metrics may
// have a token of its own, which opens nothing else. Errors are JSON in the shape of
// the client API.
//
// Run owns the server's goroutines and ends with its context.
package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/spillway/spillway/internal/fleet"
)

// Control is what operators see of the whole program and ask of it. Its methods
// are called from many goroutines.
type Control interface {
	// State tells which configuration is in use.
	State() State
	// Reload reads the configuration again. Its error lists every mistake; then
	// nothing has changed.
	Reload(ctx context.Context) error
	// Unready lists why requests cannot be answered, whatever the fleet is like.
	Unready() []string
}

// State is the configuration in use.
type State struct {
	Hash        string    `json:"hash"`                 // of the file's bytes
	Version     int64     `json:"version"`              // 1 at the start; grows with each reload that was applied
	Source      string    `json:"source"`               // the file's name, or "flags"
	LoadedAt    time.Time `json:"loaded_at"`            // when it was applied
	LastError   string    `json:"last_error,omitempty"` // of the last reload, when it was refused
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
}

// Parts are what a Server works with. Those that may be nil say so.
type Parts struct {
	Fleet       *fleet.Fleet
	Metrics     prometheus.Gatherer
	Control     Control
	Emergency   Emergency   // nil: there is no such switch, and no path for it
	Cache       Cache       // nil: there is none, and no path for it
	Experiments Experiments // nil: there are none, and no path for them
	Routes      Routes      // nil: nobody explains, and there is no path for it
	Ledger      Ledger      // nil: there is none, and no path for it
	Log         *slog.Logger
}

// Server answers operators. It is safe for concurrent use.
type Server struct {
	parts    Parts
	log      *slog.Logger
	settings atomic.Pointer[settings]
	http     *http.Server
}

// settings are what a reload replaces.
type settings struct {
	guard
	mux *http.ServeMux
}

// Time-outs of the listener. Answers have none, because a profile may take long.
const (
	headTimeout = 10 * time.Second
	idleTimeout = 2 * time.Minute
	stopTimeout = time.Second
)

// New returns a server that does not listen yet. It reads tokens and certificates.
func New(cfg Config, parts Parts) (*Server, error) {
	s := &Server{parts: parts, log: parts.Log.With("component", "admin")}
	if err := s.Apply(cfg); err != nil {
		return nil, err
	}
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: headTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Apply replaces the configuration, and reads tokens and certificates again, which
// may have changed in their files. Its error changes nothing. The listener stays as it
// was; what connects from now on is met with the new certificates.
func (s *Server) Apply(cfg Config) error {
	guard, err := cfg.guard()
	if err != nil {
		return err
	}
	s.settings.Store(&settings{guard, s.routes(cfg)})
	return nil
}

// Run serves the listener until ctx ends.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	failed := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { failed <- s.http.Serve(tlsListener{ln, s}) })
	defer wg.Wait()
	select {
	case err := <-failed:
		return fmt.Errorf("admin listener: %w", err)
	case <-ctx.Done():
	}
	wait, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if s.http.Shutdown(wait) != nil {
		s.http.Close()
	}
	return nil
}

// routes builds the table of paths.
func (s *Server) routes(cfg Config) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /livez", http.HandlerFunc(s.livez))
	mux.Handle("GET /readyz", http.HandlerFunc(s.readyz))
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.parts.Metrics, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelError), ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
	}))
	mux.HandleFunc("GET /admin/config", s.config)
	mux.HandleFunc("GET /admin/fleet", s.fleet)
	mux.HandleFunc("POST /admin/drain/{instance...}", s.drain(true))
	mux.HandleFunc("DELETE /admin/drain/{instance...}", s.drain(false))
	mux.HandleFunc("POST /admin/undrain/{instance...}", s.drain(false))
	mux.HandleFunc("POST /admin/reload", s.reload)
	if s.parts.Emergency != nil {
		mux.HandleFunc("GET /admin/emergency", s.emergency)
		mux.HandleFunc("POST /admin/emergency", s.switchEmergency)
	}
	if s.parts.Cache != nil {
		mux.HandleFunc("GET /admin/cache", s.cacheState)
		mux.HandleFunc("GET /admin/cache/entries/{key}", s.cacheEntries)
		mux.HandleFunc("POST /admin/cache/purge", s.purgeCache)
		mux.HandleFunc("POST /admin/cache/warm", s.warmCache)
	}
	if s.parts.Routes != nil {
		mux.HandleFunc("POST /admin/route/explain", s.explainRoute)
	}
	if s.parts.Ledger != nil {
		mux.HandleFunc("GET /admin/usage", s.usage)
	}
	if s.parts.Experiments != nil {
		mux.HandleFunc("GET /admin/experiments", s.experiments)
		mux.HandleFunc("POST /admin/experiments/{name}", s.orderExperiment)
	}
	if cfg.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	set := s.settings.Load()
	if r.URL.Path != "/livez" && r.URL.Path != "/readyz" {
		if p := set.admit(r); p != nil {
			if p.Code == codeUnauthorized {
				w.Header().Set("WWW-Authenticate", "Bearer")
			}
			p.write(w)
			return
		}
	}
	if _, pattern := set.mux.Handler(r); pattern == "" {
		refuse(set.mux, w, r)
		return
	}
	set.mux.ServeHTTP(w, r)
}

// Probes answers /livez and /readyz alone, for the listener of clients or one of
// the probes' own.
func (s *Server) Probes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", s.livez)
	mux.HandleFunc("GET /readyz", s.readyz)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if _, pattern := mux.Handler(r); pattern == "" {
			refuse(mux, w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// Codes of errors, in the words of the client API where it has them.
const (
	codeUnauthorized   = "unauthorized"
	codeForbidden      = "forbidden"
	codeNotFound       = "not_found"
	codeNotAllowed     = "method_not_allowed"
	codeAmbiguous      = "ambiguous"
	codeInvalid        = "invalid_config"
	codeInvalidRequest = "invalid_request"
	codeUnavailable    = "unavailable"
	codeTooLarge       = "request_too_large"
	codeTimeout        = "request_timeout"
)

// problem is an error as it is answered.
type problem struct {
	status  int
	Code    string
	Message string
}

// write answers with the error.
func (p *problem) write(w http.ResponseWriter, more ...detail) {
	body := map[string]any{"error": map[string]any{"message": p.Message, "type": "admin_error", "param": nil, "code": p.Code}}
	for _, d := range more {
		body[d.name] = d.value
	}
	writeJSON(w, p.status, body)
}

// detail is a member beside an error.
type detail struct {
	name  string
	value any
}

// writeJSON answers with a value.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // an operator that left has no use for an error
}

// refuse answers what no route takes. The mux knows whether the path or the
// method is wrong, but would say so in plain text.
func refuse(mux *http.ServeMux, w http.ResponseWriter, r *http.Request) {
	said := &verdict{header: make(http.Header)}
	mux.ServeHTTP(said, r)
	if said.status == http.StatusMethodNotAllowed {
		allow := said.header.Get("Allow")
		w.Header().Set("Allow", allow)
		p := problem{http.StatusMethodNotAllowed, codeNotAllowed, fmt.Sprintf("method %s is not allowed here; use %s", r.Method, allow)}
		p.write(w)
		return
	}
	p := problem{http.StatusNotFound, codeNotFound, fmt.Sprintf("unknown path %q", r.URL.Path)}
	p.write(w)
}

// verdict is a ResponseWriter that keeps the head alone.
type verdict struct {
	header http.Header
	status int
}

// Header implements http.ResponseWriter.
func (v *verdict) Header() http.Header { return v.header }

// Write implements http.ResponseWriter.
func (v *verdict) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader implements http.ResponseWriter.
func (v *verdict) WriteHeader(status int) { v.status = status }

// config answers GET /admin/config.
func (s *Server) config(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.parts.Control.State())
}

// reload answers POST /admin/reload. A configuration that is refused is the
// operator's mistake: 422, with the state that stays.
func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	err := s.parts.Control.Reload(context.WithoutCancel(r.Context())) // it is done or refused, also when the operator leaves
	state := s.parts.Control.State()
	if err == nil {
		writeJSON(w, http.StatusOK, state)
		return
	}
	p := problem{http.StatusUnprocessableEntity, codeInvalid, err.Error()}
	p.write(w, detail{"config", state})
}
