// Package engine is a simulated model server: an OpenAI-compatible HTTP server that behaves like vLLM under load
// without a GPU, so that a gateway can be tried, tested and benchmarked anywhere.
//
// # The batching model
//
// [Batch] is continuous batching with chunked prefill, a KV-token budget with preemption and a prefix cache. It knows
// neither HTTP nor the clock: the caller says what time it is, [Batch.Step] says how long the step lasts and which
// sequences have a token at its end. A simulation runs it in virtual time; the server runs it in real time.
// One step costs base + per_seq * batch + per_prompt_token * prefilled tokens. One token is [TokenBytes] bytes.
//
// # How data moves
//
// A handler parses the request, draws its faults, submits a [Sequence] and flushes the response head. From then on the
// step loop ([Engine.Run]) writes every event itself, with one non-blocking write to the stream's socket, so an event
// costs no goroutine switch and no encoding: the pieces around a token are rendered once per request. The handler
// sleeps until the answer is over, the client leaves, or the socket is full. In the last case, and wherever the socket
// cannot be reached (HTTP/2, TLS, HTTP/1.0), the loop appends to the stream's bounded backlog and the handler writes.
// The text of token i is a function of the prompt and i; nothing is stored.
//
// # Who owns what
//
// The step loop is one goroutine, owned by Run, and the only caller of Batch.Step. Engine.mu guards the batch, because
// handlers submit and cancel. Each stream's mu guards its connection: whoever writes holds it, and the handler
// closes the stream under it before it returns the connection to net/http. Lock order: Engine.mu is never held
// together with a stream's mu.
//
// # Invariants
//
// KV in use never exceeds its budget. A sequence's tokens come in order and exactly once, preempted or not. A
// sequence whose client left is out of the batch before its handler returns. Steps follow absolute deadlines:
// lateness of one step never delays the next, and every late step is counted.
package engine
