//go:build !unix

package load

import "net"

// alive cannot be told here without blocking: the next write tells.
func alive(net.Conn) bool { return true }
