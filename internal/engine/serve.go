package engine

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Serve runs the engine and an HTTP/1.1 and h2c server for it on the listener, which it closes. When ctx ends it
// accepts nothing more, lets open answers run on for at most DrainTimeout, breaks off the rest and returns nil. An
// error is the listener's.
func (e *Engine) Serve(ctx context.Context, ln net.Listener) error {
	loop, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	server := e.server()
	defer server.Close()
	ended, failed := make(chan error, 1), make(chan error, 1)
	running.Go(func() { ended <- e.Run(loop) })
	running.Go(func() { failed <- server.Serve(ln) })
	e.log.Info("engine listens", "address", ln.Addr().String())
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case err := <-ended: // the engine ran already
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.cfg.DrainTimeout)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		e.log.Warn("engine breaks off open answers", "waited", e.cfg.DrainTimeout)
	}
	return nil // stopping the loop makes the remaining handlers abort
}

// server is an http.Server for long streams: time-outs on heads and idle connections, none on answers (those have
// their own, see Config).
func (e *Engine) server() *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           e,
		ConnContext:       ConnContext,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		Protocols:         &protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 10_000},
		ErrorLog:          slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
	}
}
