package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// askTimeout bounds one question of a scenario of the cache.
const askTimeout = 60 * time.Second

// asker is a client with one connection, which asks one question at a time.
type asker struct {
	conn net.Conn
	r    *bufio.Reader
}

// newAsker connects to a base URL.
func newAsker(ctx context.Context, base string) (*asker, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		return nil, err
	}
	return &asker{conn: c, r: bufio.NewReaderSize(c, 16<<10)}, nil
}

// close ends the connection.
func (a *asker) close() { a.conn.Close() }

// cacheQuestion is a whole request for the answer to question n. Equal numbers are equal
// questions.
func cacheQuestion(n, tokens int, stream bool) []byte {
	options := ""
	if stream {
		options = `,"stream":true`
	}
	body := fmt.Sprintf(`{"model":%q,"temperature":0%s,"messages":[{"role":"user","content":"Question %d of many: what is it that makes a gateway answer in less time than it takes to ask, and why should anybody care about the difference?"}]}`, model, options, n)
	return fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nX-Engine-Output-Tokens: %d\r\nContent-Length: %d\r\n\r\n%s", tokens, len(body), body)
}

// answered is one whole answer.
type answered struct {
	status int
	cache  string // X-Spillway-Cache
	body   []byte
	took   time.Duration // until its last byte
}

// ask sends a question and reads the whole answer.
func (a *asker) ask(question []byte) (answered, error) {
	start := time.Now()
	if err := a.send(question); err != nil {
		return answered{}, err
	}
	res, err := a.head()
	if err != nil {
		return answered{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return answered{res.StatusCode, res.Header.Get("X-Spillway-Cache"), body, time.Since(start)}, err
}

// send sends a question.
func (a *asker) send(question []byte) error {
	if err := a.conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return err
	}
	_, err := a.conn.Write(question)
	return err
}

// head reads the beginning of an answer.
func (a *asker) head() (*http.Response, error) { return http.ReadResponse(a.r, nil) }

// whole says whether a body is a whole answer, and of a stream that it has all of its
// tokens.
func (a answered) whole(stream bool, tokens int) bool {
	if a.status != http.StatusOK {
		return false
	}
	if !stream {
		return bytes.Contains(a.body, fmt.Appendf(nil, `"completion_tokens":%d`, tokens)) && a.body[len(a.body)-1] == '}'
	}
	return bytes.HasSuffix(a.body, []byte("data: [DONE]\n\n")) && bytes.Count(a.body, []byte(`"delta":{"content":`)) == tokens
}

// times are the durations of a row of questions.
type times []time.Duration

// at is a quantile in microseconds.
func (t times) at(q float64) float64 {
	if len(t) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(t))
	return float64(s[min(int(q*float64(len(s))), len(s)-1)]) / float64(time.Microsecond)
}

// askAll asks questions 0 to n-1 over a number of connections, each question once, and
// returns how long they took. check judges each answer.
func askAll(ctx context.Context, base string, n, conns int, check func(i int, a answered) error) (times, error) {
	took := make(times, n)
	errs := make([]error, conns)
	var wg sync.WaitGroup
	for c := range conns {
		wg.Go(func() {
			errs[c] = func() error {
				a, err := newAsker(ctx, base)
				if err != nil {
					return err
				}
				defer a.close()
				for i := c; i < n; i += conns {
					if ctx.Err() != nil {
						return ctx.Err()
					}
					got, err := a.ask(cacheQuestion(i, hitTokens, false))
					if err == nil && !got.whole(false, hitTokens) {
						err = fmt.Errorf("question %d: status %d, %s", i, got.status, got.body)
					}
					if err == nil {
						err = check(i, got)
					}
					if err != nil {
						return err
					}
					took[i] = got.took
				}
				return nil
			}()
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return took, nil
}
