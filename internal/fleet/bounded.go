package fleet

import (
	"errors"
	"io"
)

// ErrTooLong is the error of a registry's answer that is longer than it may be.
var ErrTooLong = errors.New("the answer is too long")

// Bounded is the body of a registry's answer, of which at most so many bytes are read;
// behind them reading fails with ErrTooLong.
func Bounded(body io.ReadCloser, most int64) io.ReadCloser { return &bounded{body, most} }

// bounded is a body that may not be longer than it should.
type bounded struct {
	io.ReadCloser
	left int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left == 0 && len(p) > 0 { // what is left may be nothing
		var one [1]byte
		if n, err := b.ReadCloser.Read(one[:]); n == 0 {
			return 0, err
		}
		return 0, ErrTooLong
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}
