//go:build !linux

package api

import "errors"

// hangups does not exist on this system; net/http serves all connections.
type hangups struct{}

// hangupTicket names a registration.
type hangupTicket uint64

// newHangups says so.
func newHangups() (*hangups, error) { return nil, errors.New("not available on this system") }

func (*hangups) add(int, *leanConn) (hangupTicket, error) { return 0, errors.ErrUnsupported }
func (*hangups) remove(hangupTicket)                      {}
func (*hangups) close()                                   {}
