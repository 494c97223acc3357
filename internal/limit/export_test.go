package limit

// Insides that tests look at.
var (
	Matches   = matches
	NewPast   = newExpectations
	NetworkOf = network
)

// Observe and Of are what expectations do.
func (x *expectations) Observe(k Key, tokens int64) { x.observe(k, tokens) }

// Of is the expected length.
func (x *expectations) Of(k Key, quantile float64) (int64, bool) { return x.of(k, quantile) }

// Census is entries, bytes, and evictions of idle and live buckets.
func (m *Memory) Census() (entries, bytes int, idle, live uint64) {
	c := m.census()
	return c.entries, c.bytes, c.idle, c.live
}

// Held is of how many buckets something is under way.
func (m *Memory) Held() int { return m.census().held }

// Local is the limiter's own store, and Addresses that of addresses.
func (l *Limiter) Local() *Memory { return l.local }

// Addresses is the store of addresses.
func (l *Limiter) Addresses() *Memory { return l.addresses }

// Asks are what a receipt was charged.
func (r *Receipt) Asks() []Ask { return r.asks }

// Gateways is their last known number, and whether the shared store rests.
func (l *Limiter) Gateways() (n int64, resting bool) {
	return l.shared.gateways.Load(), l.shared.resting.Load()
}

// Spent is what all accounts of budgets have spent.
func (l *Limiter) Spent() (sum int64) {
	l.accounts.mu.Lock()
	defer l.accounts.mu.Unlock()
	for _, acc := range l.accounts.mu.all {
		sum += acc.spent
	}
	return sum
}
