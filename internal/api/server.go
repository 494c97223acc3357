// Package api is the HTTP server for clients: the /v1 surfaces, streams as
// server-sent events, error bodies in each surface's own shape, and the limits
// that keep a bad client from costing more than itself.
//
// A request's way: head (identity, content type, announced length), then the
// body, bounded by itself and together with all others, then the strict scan,
// then gateway.Serve with the connection as the flight's reader. Every request
// has an id, in its answer and in the log.
//
// net/http owns the connections' goroutines; Run owns the listeners and ends
// them: it stops accepting, waits for requests in progress, then cuts the rest
// with an error frame. Keeping the relay behind gateway.Reader leaves room for a
// leaner HTTP/1.1 front.
package api

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Identity tells who sent a request. Its error is an *inference.Error.
type Identity interface {
	Identify(h http.Header) (tenant string, class inference.Class, err error)
}

// Serve answers one request; it is gateway.Serve, given by app.
type Serve func(ctx context.Context, req *inference.Request, out Answer) *inference.Record

// Answer is gateway.Reader, repeated here so that api and gateway meet only in
// words.
type Answer interface {
	Head(head *inference.Head) error
	Write(p []byte, flush bool) error
	Fail(err *inference.Error)
}

// Tracing follows requests across services. The zero value of its methods'
// results is valid and costs nothing.
type Tracing interface {
	// Start begins a request's span and returns the header to send upstream.
	Start(ctx context.Context, h http.Header, req *inference.Request) (context.Context, http.Header)
	// Finish ends it.
	Finish(ctx context.Context, rec *inference.Record)
}

// Parts are what a Server works with.
type Parts struct {
	Serve    Serve
	Identity Identity
	Timeout  func() time.Duration // longest time for a whole request
	Models   func() []string      // what GET /v1/models lists
	Probes   http.Handler         // /livez and /readyz; nil answers neither
	Tracing  Tracing              // nil: off
	Log      *slog.Logger
}

// Server serves clients. It is safe for concurrent use.
type Server struct {
	parts   Parts
	cfg     atomic.Pointer[Config]
	proxies atomic.Pointer[trusted]
	memory  memory
	began   int64 // Unix seconds, for GET /v1/models

	base     context.Context // of every request; ends when the stop has waited enough
	cut      context.CancelCauseFunc
	stopping atomic.Bool
	http     *http.Server
}

// New returns a server that does not listen yet.
func New(cfg Config, parts Parts) *Server {
	s := &Server{parts: parts, began: time.Now().Unix()}
	s.base, s.cut = context.WithCancelCause(context.Background())
	s.Apply(cfg)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler:           s,
		Protocols:         protocols,
		ReadHeaderTimeout: cfg.ReadHeaderTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    cfg.MaxHeader,
		ErrorLog:          slog.NewLogLogger(parts.Log.With("component", "api").Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return s.base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if fc, ok := c.(*frontConn); ok {
				return context.WithValue(ctx, connKey{}, fc)
			}
			return ctx
		},
	}
	return s
}

// connKey finds a connection in a request's context.
type connKey struct{}

// Apply replaces what a reload may change. Listeners and their time-outs stay as
// they were when the server began.
func (s *Server) Apply(cfg Config) {
	s.cfg.Store(&cfg)
	t := newTrusted(cfg.TrustedProxies)
	s.proxies.Store(&t)
}

// errStopped is why requests end that the end of the drain cuts.
var errStopped = inference.Errorf(inference.CodeDraining, "the gateway is stopping")

// Run serves the listeners until ctx ends, then stops: no new connections, time
// for requests in progress, then an error frame for what is left. Probes on
// their own listener go on until the end.
func (s *Server) Run(ctx context.Context, main net.Listener, probes net.Listener) error {
	cfg := s.cfg.Load()
	front := &frontListener{Listener: main, plain: cfg.TLSCertFile == ""}
	if cfg.ProxyProtocol {
		front.proxies = *s.proxies.Load()
	}
	var ln net.Listener = front
	if cfg.TLSCertFile != "" {
		cert, err := tls.LoadX509KeyPair(cfg.TLSCertFile, cfg.TLSKeyFile)
		if err != nil {
			return err
		}
		ln = tls.NewListener(front, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}})
	}
	failed := make(chan error, 2)
	var wg sync.WaitGroup
	wg.Go(func() { failed <- s.http.Serve(ln) })
	var probe *http.Server
	if probes != nil && s.parts.Probes != nil {
		probe = &http.Server{Handler: s.parts.Probes, ReadHeaderTimeout: cfg.ReadHeaderTimeout, IdleTimeout: cfg.IdleTimeout}
		wg.Go(func() { failed <- probe.Serve(probes) })
	}
	var err error
	select {
	case <-ctx.Done():
		s.drain()
	case err = <-failed:
		s.cut(errStopped)
		s.http.Close()
	}
	if probe != nil {
		probe.Close()
	}
	wg.Wait()
	return err
}

// cutGrace is how long requests that were cut may take to say so.
const cutGrace = time.Second

// drain stops the main listener.
func (s *Server) drain() {
	s.stopping.Store(true)
	wait, cancel := context.WithTimeout(context.Background(), s.cfg.Load().DrainTimeout)
	defer cancel()
	if s.http.Shutdown(wait) == nil {
		return
	}
	s.cut(errStopped)
	wait, cancel = context.WithTimeout(context.Background(), cutGrace)
	defer cancel()
	if s.http.Shutdown(wait) != nil {
		s.http.Close()
	}
}

// Stopping says that no new requests are taken.
func (s *Server) Stopping() bool { return s.stopping.Load() }

// Buffered is the number of bytes of request bodies in memory.
func (s *Server) Buffered() int64 { return s.memory.used.Load() }
