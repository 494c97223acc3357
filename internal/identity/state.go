package identity

import (
	"crypto/sha256"
	"math"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// entry is a key as requests find it.
type entry struct {
	caller inference.Caller
	ends   int64 // Unix ns from which it is refused
}

// index finds the keys whose digests are made in one way.
type index struct {
	sum  func(key string) digest
	keys map[digest]*entry
}

// state is all that decides about a request. It never changes.
type state struct {
	plain    index
	peppered index
	tokens   bool             // tokens are judged too
	waits    bool             // keys are missing that are not read yet
	anybody  bool             // no credential is asked for
	guests   bool             // requests without any credential get in
	guest    inference.Caller // who they are
}

// newState makes the state of a configuration and the keys. Of several with one
// digest the first counts, and it ends when the first of them does. without is the
// number of keys that can only be judged with a pepper, which there is not.
func newState(cfg *Config, secret pepper, lists ...[]Key) (s *state, without int) {
	s = &state{
		plain:    index{sum, make(map[digest]*entry)},
		peppered: index{keys: make(map[digest]*entry)},
		tokens:   cfg.JWT.Enabled(),
		guests:   cfg.guests(),
		anybody:  cfg.guests() && !cfg.asks(),
		guest:    cfg.Anonymous.caller(),
	}
	if secret != nil {
		s.peppered.sum = newMACs(secret).sum
	}
	for _, keys := range lists {
		for i := range keys {
			k := &keys[i]
			into := s.plain.keys
			if k.Digest.Kind == HMAC {
				if secret == nil {
					without++
					continue
				}
				into = s.peppered.keys
			}
			ends := k.ends()
			if e := into[k.Digest.Sum]; e != nil {
				e.ends = min(e.ends, ends)
				continue
			}
			into[k.Digest.Sum] = &entry{k.caller(), ends}
		}
	}
	return s, without
}

// find looks a key up. sum is its SHA-256 where a token may need it. Each digest is
// computed when a key or token could have it, whatever the key is.
func (s *state) find(key string, now time.Time) (found *entry, sum digest) {
	ends := int64(math.MaxInt64)
	look := func(e *entry) {
		if e != nil {
			found, ends = e, min(ends, e.ends) // of a key that stands in both, the earlier end counts
		}
	}
	if len(s.plain.keys) > 0 || s.tokens {
		sum = s.plain.sum(key)
		look(s.plain.keys[sum])
	}
	if len(s.peppered.keys) > 0 {
		look(s.peppered.keys[s.peppered.sum(key)])
	}
	if now.UnixNano() >= ends {
		return nil, sum
	}
	return found, sum
}

// inForce counts the keys that are.
func (s *state) inForce(now time.Time) (n int) {
	at := now.UnixNano()
	for _, x := range []*index{&s.plain, &s.peppered} {
		for _, e := range x.keys {
			if at < e.ends {
				n++
			}
		}
	}
	return n
}

// caller is what a request with the key is.
func (k *Key) caller() inference.Caller {
	c := inference.Caller{Tenant: k.Tenant, Key: k.ID, Class: k.Class, Models: k.Models}
	if k.Quota != (inference.Quota{}) {
		q := k.Quota
		c.Quota = &q
	}
	return c
}

// ends is when the key ends, in Unix ns. A revoked one never began.
func (k *Key) ends() int64 {
	switch {
	case !k.Revoked.IsZero():
		return math.MinInt64
	case k.Expires.IsZero():
		return math.MaxInt64
	}
	return nano(k.Expires)
}

// nano is an instant in Unix ns, or the nearest one that an int64 holds: years before
// 1678 and after 2262 do not fit.
func nano(t time.Time) int64 {
	const most = math.MaxInt64 / int64(time.Second)
	switch s := t.Unix(); {
	case s >= most:
		return math.MaxInt64
	case s <= -most:
		return math.MinInt64
	}
	return t.UnixNano()
}

// digest is what a key is looked up by.
type digest = [sha256.Size]byte
