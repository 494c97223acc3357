//go:build !linux

package bench

import (
	"context"
	"io"
	"net/netip"
)

// RunApart returns ErrNoNetwork: only Linux has networks of a process's own.
func RunApart(context.Context, []string, io.Writer, io.Writer) error { return ErrNoNetwork }

// bringUp is never reached without RunApart.
func bringUp(netip.Addr) error { return ErrNoNetwork }
