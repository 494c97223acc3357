package api

import (
	"errors"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// leanResponse is the answering side of a lean connection: what writer needs of
// an http.ResponseWriter. Head and body meet in one buffer, so that a short
// answer is one system call, and each flush of a stream is one.
type leanResponse struct {
	c       *leanConn
	header  http.Header
	out     []byte
	begun   bool
	chunked bool
	close   bool // the connection ends with this answer
	left    int64
}

// outSize is the size of the output buffers; what does not fit is written as it
// comes.
const outSize = 8 << 10

// outs holds output buffers.
var outs = sync.Pool{New: func() any { b := make([]byte, 0, outSize); return &b }}

// reset prepares for another request.
func (r *leanResponse) reset(c *leanConn) {
	if r.header == nil {
		r.header = make(http.Header, 8)
	}
	clear(r.header)
	*r = leanResponse{c: c, header: r.header}
}

// Header implements http.ResponseWriter.
func (r *leanResponse) Header() http.Header { return r.header }

// WriteHeader implements http.ResponseWriter.
func (r *leanResponse) WriteHeader(status int) {
	if r.begun {
		return
	}
	r.begun = true
	b := append(r.buffer(), "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(append(append(b, ' '), statusText(status)...), "\r\nDate: "...)
	b = append(append(b, r.c.lean.clock.date()...), "\r\n"...)
	lengths := r.header["Content-Length"]
	r.chunked = len(lengths) == 0
	if !r.chunked {
		r.left, _ = strconv.ParseInt(lengths[0], 10, 64) // written by writer from a number
	}
	for name, values := range r.header {
		if name == "Connection" {
			continue
		}
		for _, v := range values {
			b = append(append(append(append(b, name...), ": "...), v...), "\r\n"...)
		}
	}
	if r.chunked {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	if r.close {
		b = append(b, "Connection: close\r\n"...)
	}
	r.out = append(b, "\r\n"...)
}

// errLength says that an answer does not keep to the length it announced.
var errLength = errors.New("the answer is longer than announced")

// Write implements http.ResponseWriter.
func (r *leanResponse) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // an empty chunk would end the answer
	}
	if !r.begun {
		r.WriteHeader(http.StatusOK)
	}
	if !r.chunked {
		if r.left -= int64(len(p)); r.left < 0 {
			return 0, errLength
		}
	}
	if r.chunked {
		r.out = append(strconv.AppendInt(r.buffer(), int64(len(p)), 16), "\r\n"...)
	}
	if err := r.add(p); err != nil {
		return 0, err
	}
	if r.chunked {
		r.out = append(r.buffer(), "\r\n"...)
	}
	return len(p), nil
}

// add puts p into the buffer, or writes it out where it is too large for that.
func (r *leanResponse) add(p []byte) error {
	if len(r.out)+len(p) > outSize {
		if err := r.flush(); err != nil {
			return err
		}
		if len(p) > outSize/2 {
			return r.send(p)
		}
	}
	r.out = append(r.buffer(), p...)
	return nil
}

// buffer returns the output buffer: between two flushes of a stream there is none.
func (r *leanResponse) buffer() []byte {
	if r.out == nil {
		r.out = (*outs.Get().(*[]byte))[:0]
	}
	return r.out
}

// FlushError implements what http.ResponseController calls.
func (r *leanResponse) FlushError() error {
	if !r.begun {
		r.WriteHeader(http.StatusOK)
	}
	return r.flush()
}

// flush writes the buffer out and gives it back.
func (r *leanResponse) flush() error {
	if len(r.out) == 0 {
		return nil
	}
	err := r.send(r.out)
	if cap(r.out) <= 2*outSize {
		b := r.out[:0]
		outs.Put(&b)
	}
	r.out = nil
	return err
}

// send writes p, resuming after a deadline that fired too early.
func (r *leanResponse) send(p []byte) error {
	for {
		n, err := r.c.nc.Write(p)
		if err == nil {
			return nil
		}
		if p = p[n:]; !errors.Is(err, os.ErrDeadlineExceeded) || !r.c.write.early(time.Now(), r.c.nc.SetWriteDeadline) {
			return err
		}
	}
}

// SetWriteDeadline implements what http.ResponseController calls.
func (r *leanResponse) SetWriteDeadline(t time.Time) error {
	return r.c.write.set(t, r.c.nc.SetWriteDeadline)
}

// errUnfinished says that an answer is shorter than it announced, or was never
// begun.
var errUnfinished = errors.New("the answer was not finished")

// finish ends the answer and gives the buffer back.
func (r *leanResponse) finish() error {
	if !r.begun || !r.chunked && r.left != 0 {
		return errUnfinished
	}
	if r.chunked {
		r.out = append(r.buffer(), "0\r\n\r\n"...)
	}
	return r.flush()
}

// dateOf is the Date field's value of one second.
type dateOf struct {
	second int64
	text   string
}

// clock makes Date values: all answers of a second share one.
type clock struct{ last atomic.Pointer[dateOf] }

// date is the value of the Date field now.
func (k *clock) date() string {
	now := time.Now()
	if d := k.last.Load(); d != nil && d.second == now.Unix() {
		return d.text
	}
	d := &dateOf{now.Unix(), now.UTC().Format(http.TimeFormat)}
	k.last.Store(d)
	return d.text
}
