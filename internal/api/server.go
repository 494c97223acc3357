package api

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Identity tells who sent a request. Its error is an *inference.Error.
type Identity interface {
	Identify(h http.Header) (inference.Caller, error)
}

// Addresses limits what one address may ask, before anything of it is read but its
// head. Its error is an *inference.Error.
type Addresses interface {
	Admit(now time.Time, ip netip.Addr) error
}

// Serve answers one request; it is gateway.Serve, given by app.
type Serve func(ctx context.Context, req *inference.Request, out Answer) *inference.Record

// Answer is gateway.Reader, repeated here so that api and gateway meet only in
// words.
type Answer interface {
	// Head begins the answer.
	Head(head *inference.Head) error
	// Write adds whole events, or a piece of a body. It may hold them until flush.
	Write(p []byte, flush bool) error
	// Fail ends the answer with an error.
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
	Record   func(*inference.Record) // keeps requests that never reach Serve
	Identity Identity
	Limits   Addresses            // nil: there are none
	Feedback Feedback             // nil: nobody wants any
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
	lean     *lean // nil: net/http reads every connection
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
		MaxHeaderBytes:    int(cfg.MaxHeader),
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
	ln, err := s.front(main, cfg)
	if err != nil {
		return err
	}
	failed := make(chan error, 3)
	var wg sync.WaitGroup
	if s.lean != nil {
		wg.Go(func() { failed <- s.lean.serve(main) })
	}
	wg.Go(func() { failed <- s.http.Serve(ln) })
	var probe *http.Server
	if probes != nil && s.parts.Probes != nil {
		probe = &http.Server{Handler: s.parts.Probes, ReadHeaderTimeout: cfg.ReadHeaderTimeout, IdleTimeout: cfg.IdleTimeout}
		wg.Go(func() { failed <- probe.Serve(probes) })
	}
	select {
	case <-ctx.Done():
		main.Close()
		s.drain()
	case err = <-failed:
		main.Close()
		s.end()
	}
	if probe != nil {
		probe.Close()
	}
	wg.Wait()
	return err
}

// front decides who reads the main listener's connections, and returns the
// listener of net/http.
func (s *Server) front(main net.Listener, cfg *Config) (net.Listener, error) {
	front := &frontListener{Listener: main, server: s, plain: cfg.TLSCertFile == "", patience: cfg.ReadHeaderTimeout}
	if cfg.ProxyProtocol {
		front.proxies = *s.proxies.Load()
	}
	if cfg.TLSCertFile != "" {
		cert, err := tls.LoadX509KeyPair(cfg.TLSCertFile, cfg.TLSKeyFile)
		if err != nil {
			return nil, err
		}
		return tls.NewListener(front, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}), nil
	}
	if cfg.ProxyProtocol || cfg.Front != FrontLean {
		return front, nil
	}
	lean, err := newLean(s, main.Addr())
	if err != nil {
		s.parts.Log.Warn("net/http serves all connections", "component", "api", "err", err)
		return front, nil
	}
	s.lean = lean
	return lean.handoff, nil
}

// cutGrace is how long requests that were cut may take to say so.
const cutGrace = time.Second

// drain lets requests in progress finish, then cuts them.
func (s *Server) drain() {
	s.stopping.Store(true)
	wait, cancel := context.WithTimeout(context.Background(), s.cfg.Load().DrainTimeout)
	defer cancel()
	if s.finish(wait) != nil {
		s.cut(errStopped)
		if s.lean != nil {
			s.lean.cut(errStopped)
		}
		wait, cancel = context.WithTimeout(context.Background(), cutGrace)
		defer cancel()
		_ = s.finish(wait) // what is left is closed below
	}
	s.end()
}

// finish waits for the requests in progress, no longer than ctx.
func (s *Server) finish(ctx context.Context) error {
	if s.lean == nil {
		return s.http.Shutdown(ctx)
	}
	s.lean.stop()
	shut := make(chan error, 1)
	go func() { shut <- s.http.Shutdown(ctx) }() // ends with ctx at the latest
	return errors.Join(s.lean.wait(ctx), <-shut)
}

// end closes every connection.
func (s *Server) end() {
	s.cut(errStopped)
	if s.lean != nil {
		s.lean.cut(errStopped)
		s.lean.close()
	}
	s.http.Close()
}

// Stopping says that no new requests are taken.
func (s *Server) Stopping() bool { return s.stopping.Load() }

// Buffered is the number of bytes of request bodies in memory.
func (s *Server) Buffered() int64 { return s.memory.used.Load() }
