package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
)

// ErrNoNetwork says that this system does not give a process a network of its own.
var ErrNoNetwork = errors.New("needs a network of its own (Linux with user namespaces)")

// apartVariable is in the environment of a process that RunApart has started.
const apartVariable = "SPILLWAY_BENCH_APART"

// IsApart says whether RunApart has started this process.
func IsApart() bool { return os.Getenv(apartVariable) != "" }

// apartAddress is what a process in a network of its own is reached at beside
// loopback. The range is reserved for benchmarks (RFC 2544), so that it is nobody's.
const apartAddress = "198.18.0.1"

// listenApart returns an address to listen at that is not loopback: the API server
// of Kubernetes refuses loopback addresses as endpoints.
func listenApart() (host string, err error) {
	if !IsApart() {
		return "", ErrNoNetwork
	}
	if err := bringUp(netip.MustParseAddr(apartAddress)); err != nil {
		return "", fmt.Errorf("give this network its address: %w", err)
	}
	return apartAddress, nil
}
