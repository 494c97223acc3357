package preload_test

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/preload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// monday is the first instant of a day.
var monday = time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)

// key is the key of a question.
func key(name any) [32]byte { return sha256.Sum256(fmt.Append(nil, name)) }

// request asks a question.
func request(name any) *inference.Request {
	body := fmt.Appendf(nil, `{"model":"m","messages":[{"role":"user","content":"question %v"}]}`, name)
	return &inference.Request{
		ID: "r1", Tenant: "acme", Class: inference.VIP, Body: body,
		Header: http.Header{"Authorization": {"Bearer sk-secret"}, "Accept-Language": {"de"}},
		Fields: inference.Fields{Model: "m", PromptBytes: int64(len(body))},
	}
}

// ask tells of n asks of a question.
func ask(s preload.Stream, name any, at time.Time, n int) {
	k, req := key(name), request(name)
	for range n {
		s.Observe(preload.Asked{Key: k, Request: req, At: at})
	}
}

// predicted are the asks expected for the window behind now and its horizon, by key.
func predicted(d *preload.Demand, now time.Time, horizon time.Duration) map[[32]byte]float64 {
	start := now.Truncate(5 * time.Minute).Add(5 * time.Minute)
	all := make(map[[32]byte]float64)
	for _, p := range d.Predict(now, preload.Window{Start: start, End: start.Add(5 * time.Minute)}, horizon) {
		all[p.Key] = p.Asks
	}
	return all
}
