//go:build !unix

package api

// setSendBuffer leaves the system's default where sockets have no such option.
func setSendBuffer(uintptr, int) error { return nil }
