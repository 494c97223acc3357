package gateway

// Sharing is the number of readers of shared flights.
func (g *Gateway) Sharing() (n int) {
	g.sharing.mu.Lock()
	defer g.sharing.mu.Unlock()
	for _, f := range g.sharing.mu.flights {
		n += int(f.readers.Load())
	}
	return n
}

// Held is the number of bytes on all tapes.
func (g *Gateway) Held() int64 { return g.sharing.held.Load() }
