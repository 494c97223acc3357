//go:build unix

package engine

import (
	"syscall"
)

// direct writes to a socket without ever waiting for it.
type direct struct {
	raw   syscall.RawConn
	data  []byte
	wrote int
	err   error
	call  func(fd uintptr) bool // made once, so that a write allocates nothing
}

func newDirect(l *link) *direct {
	d := &direct{raw: l.raw}
	d.call = func(fd uintptr) bool {
		for d.wrote < len(d.data) {
			n, err := syscall.Write(int(fd), d.data[d.wrote:])
			if n > 0 {
				d.wrote += n
			}
			switch err {
			case nil, syscall.EINTR:
			case syscall.EAGAIN:
				return true // report what went out instead of waiting for more room
			default:
				d.err = err
				return true
			}
		}
		return true
	}
	return d
}

// write sends what the socket takes at once and reports how much that was.
func (d *direct) write(data []byte) (int, error) {
	d.data, d.wrote, d.err = data, 0, nil
	if err := d.raw.Write(d.call); err != nil {
		return d.wrote, err
	}
	return d.wrote, d.err
}
