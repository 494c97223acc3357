package api

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
)

// signature begins a PROXY protocol header of version 2.
var signature = []byte("\r\n\r\n\x00\r\nQUIT\n")

// errProxy marks every complaint about a PROXY protocol header.
var errProxy = errors.New("malformed PROXY protocol header")

// readProxyHeader reads the header that a proxy writes before the client's own
// bytes (PROXY protocol, versions 1 and 2). An invalid address means that the
// proxy speaks for itself (LOCAL, UNKNOWN).
func readProxyHeader(r *bufio.Reader) (netip.AddrPort, error) {
	head, err := r.Peek(len(signature))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxy, err)
	}
	if bytes.Equal(head, signature) {
		return readProxyV2(r)
	}
	return readProxyV1(r)
}

// readProxyV1 reads "PROXY TCP4 source destination sport dport\r\n".
func readProxyV1(r *bufio.Reader) (netip.AddrPort, error) {
	const longest = 107 // bytes, by the specification
	var line []byte
	for len(line) < longest {
		c, err := r.ReadByte()
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxy, err)
		}
		line = append(line, c)
		if c == '\n' {
			break
		}
	}
	text, ok := strings.CutSuffix(string(line), "\r\n")
	f := strings.Split(text, " ")
	switch {
	case !ok || f[0] != "PROXY" || len(f) < 2:
		return netip.AddrPort{}, errProxy
	case f[1] == "UNKNOWN":
		return netip.AddrPort{}, nil
	case len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6":
		return netip.AddrPort{}, errProxy
	}
	ap, err := netip.ParseAddrPort(net.JoinHostPort(f[2], f[4]))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxy, err)
	}
	return ap, nil
}

// readProxyV2 reads the binary header.
func readProxyV2(r *bufio.Reader) (netip.AddrPort, error) {
	var fixed [16]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxy, err)
	}
	const longest = 4096 // bytes of addresses and extensions; real ones are far shorter
	length := int(binary.BigEndian.Uint16(fixed[14:]))
	if fixed[12]>>4 != 2 || length > longest {
		return netip.AddrPort{}, errProxy
	}
	rest := make([]byte, length)
	if _, err := io.ReadFull(r, rest); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%w: %w", errProxy, err)
	}
	if fixed[12]&0xf == 0 { // LOCAL: the proxy's own health check
		return netip.AddrPort{}, nil
	}
	size := map[byte]int{0x11: 4, 0x21: 16}[fixed[13]] // TCP over IPv4, over IPv6
	if size == 0 {
		return netip.AddrPort{}, nil
	}
	if length < 2*size+4 {
		return netip.AddrPort{}, errProxy
	}
	a, _ := netip.AddrFromSlice(rest[:size])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(rest[2*size:])), nil
}
