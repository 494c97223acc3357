// Package api is the HTTP server for clients: the /v1 surfaces, streams as
// server-sent events, error bodies in each surface's own shape, and the limits
// that keep a bad client from costing more than itself.
//
// A request's way: head (identity, content type, announced length), then the
// body, bounded by itself and together with all others, then the strict scan,
// then gateway.Serve with the connection as the flight's reader. Every request
// has an id, in its answer and in the log.
//
// Two fronts read connections: lean takes plain HTTP/1.1 requests in the common
// form, net/http everything else (TLS, HTTP/2, chunked bodies, whatever is odd or
// wrong). Both end in the same handler code and the same writer. Run owns the
// listeners and every goroutine: it stops accepting, waits for requests in
// progress, then cuts the rest with an error frame.
package api
