package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A scripted server's answers: so many tokens, one each gap, so that a stream takes
// a third of a second.
const (
	scriptedTokens = 12
	scriptedGap    = 25 * time.Millisecond
	scriptedStop   = 10 * time.Second // for what is under way at its end
)

// scripted is a model server that costs next to nothing, so that a hundred of them
// fit into one process. It can be started and stopped again at the same address.
// Its methods are safe for concurrent use.
type scripted struct {
	addr   string // host:port
	served atomic.Int64
	mu     struct {
		sync.Mutex
		server *http.Server  // nil: it does not run, or is ending
		ended  chan struct{} // closed when the server before has ended; nil: there was none
	}
}

// startScripted starts one at an address of this machine.
func startScripted(host string) (*scripted, error) {
	var problem error
	for range 20 { // what is free on loopback may be taken there
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		s := &scripted{addr: net.JoinHostPort(host, port)}
		if problem = s.start(); problem == nil {
			return s, nil
		}
	}
	return nil, problem
}

// start listens, if it does not.
func (s *scripted) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.server != nil {
		return nil
	}
	if s.mu.ended != nil {
		<-s.mu.ended
	}
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", s.addr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", s.chat)
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	s.mu.server = &http.Server{Handler: mux, ReadHeaderTimeout: scriptedStop}
	go func(server *http.Server) { _ = server.Serve(l) }(s.mu.server) // ends in stop; always an error
	return nil
}

// stop makes it listen no more, and returns at once a channel that is closed when
// what was under way has ended.
func (s *scripted) stop() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.server == nil {
		return s.mu.ended
	}
	ended := make(chan struct{})
	go func(server *http.Server) { // ends with the server
		defer close(ended)
		ctx, cancel := context.WithTimeout(context.Background(), scriptedStop)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			_ = server.Close()
		}
	}(s.mu.server)
	s.mu.server, s.mu.ended = nil, ended
	return ended
}

// chat answers a chat request, in one piece or as a stream.
func (s *scripted) chat(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Stream bool `json:"stream"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&asked); err != nil {
		http.Error(w, "not JSON", http.StatusBadRequest)
		return
	}
	s.served.Add(1)
	usage := fmt.Sprintf(`"usage":{"prompt_tokens":32,"completion_tokens":%d,"total_tokens":%d}`, scriptedTokens, 32+scriptedTokens)
	if !asked.Stream {
		if pause(r.Context(), scriptedGap) == nil {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"id":"x","object":"chat.completion","model":%q,"choices":[{"index":0,"message":{"role":"assistant","content":"one two three"},"finish_reason":"stop"}],%s}`, model, usage)
		}
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	event := func(data string) error {
		fmt.Fprintf(w, "data: %s\n\n", data)
		return errors.Join(http.NewResponseController(w).Flush(), pause(r.Context(), scriptedGap))
	}
	for range scriptedTokens {
		if event(fmt.Sprintf(`{"id":"x","object":"chat.completion.chunk","model":%q,"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}`, model)) != nil {
			return
		}
	}
	fmt.Fprintf(w, "data: {\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"model\":%q,\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],%s}\n\ndata: [DONE]\n\n", model, usage)
}
