package admission

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Times of a ticket's life.
const (
	ticketLent   = time.Second      // after its due time an unclaimed slot is lent
	ticketExpiry = 10 * time.Second // after its due time it is worth nothing
	longestWait  = time.Minute      // SDKs do not wait longer
)

// pledge is one ticket that is out.
type pledge struct {
	due    time.Time
	tenant uint64 // hash of the name
	body   uint64 // hash of the request, by which a client that echoes nothing is recognised
	nonce  uint64
}

// pledges are the tickets that are out for a class of a lane, the first due first.
type pledges struct {
	next time.Time // the ticket clock: when the last slot that was sold ends
	out  []pledge
	lost float64 // share of the latest tickets that nobody came back with
}

// claimMemory is the weight of the latest ticket in the share that is lost.
const claimMemory = 1.0 / 32

// learn notes whether a ticket's holder came back.
func (p *pledges) learn(lost bool) {
	x := 0.0
	if lost {
		x = 1
	}
	p.lost += (x - p.lost) * claimMemory
}

// forget drops what is expired and returns how many tickets that were.
func (p *pledges) forget(now time.Time) int {
	n := 0
	for n < len(p.out) && now.Sub(p.out[n].due) > ticketExpiry {
		p.learn(true)
		n++
	}
	p.out = slices.Delete(p.out, 0, n)
	return n
}

// due counts the slots that are kept for tickets due until the given instant, as
// many of them as come back; those not claimed in time are lent.
func (p *pledges) due(now, until time.Time) float64 {
	first := p.index(now.Add(-ticketLent))
	return float64(max(0, p.index(until)-first)) * (1 - p.lost)
}

// index is the number of tickets due before t.
func (p *pledges) index(t time.Time) int {
	i, _ := slices.BinarySearchFunc(p.out, t, func(a pledge, b time.Time) int { return a.due.Compare(b) })
	return i
}

// of counts a tenant's tickets.
func (p *pledges) of(tenant uint64) int {
	n := 0
	for i := range p.out {
		if p.out[i].tenant == tenant {
			n++
		}
	}
	return n
}

// claim finds the tenant's ticket for the body, or by its nonce, that is due and
// takes it out.
func (p *pledges) claim(now time.Time, tenant, body, nonce uint64) (pledge, bool) {
	for i := range p.out {
		t := p.out[i]
		if t.due.After(now) {
			break // the rest is not due yet
		}
		if t.tenant == tenant && (nonce != 0 && t.nonce == nonce || nonce == 0 && t.body == body) && now.Sub(t.due) <= ticketExpiry {
			p.out = slices.Delete(p.out, i, i+1)
			p.learn(false)
			return t, true
		}
	}
	return pledge{}, false
}

// signer makes tickets and tells true ones.
type signer struct{ key []byte }

// newSigner returns a signer over a secret; an empty one is replaced by chance.
func newSigner(secret string) *signer {
	if secret == "" {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails (crypto/rand)
		return &signer{key: key}
	}
	sum := sha256.Sum256([]byte("spillway return ticket\x00" + secret))
	return &signer{key: sum[:]}
}

// A ticket is: model, due time in Unix milliseconds, tenant, body, nonce, eight bytes
// each, the class, and the first half of their HMAC-SHA-256.
const (
	ticketBody = 5*8 + 1
	ticketMAC  = 16
)

var (
	errForged = errors.New("not a ticket of ours")
	errEarly  = errors.New("the ticket is not due yet")
	errLate   = errors.New("the ticket has expired")
	errOther  = errors.New("the ticket is another request's")
)

// write renders a ticket.
func (s *signer) write(req *inference.Request, p *pledge) string {
	var b [ticketBody + ticketMAC]byte
	binary.BigEndian.PutUint64(b[0:], nameHash(req.Model))
	binary.BigEndian.PutUint64(b[8:], uint64(p.due.UnixMilli()))
	binary.BigEndian.PutUint64(b[16:], p.tenant)
	binary.BigEndian.PutUint64(b[24:], p.body)
	binary.BigEndian.PutUint64(b[32:], p.nonce)
	b[40] = byte(req.Class)
	copy(b[ticketBody:], s.sum(b[:ticketBody]))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// sum is the signature of a ticket's body.
func (s *signer) sum(body []byte) []byte {
	mac := hmac.New(sha256.New, s.key)
	mac.Write(body)
	return mac.Sum(nil)[:ticketMAC]
}

// read judges a ticket that a client shows for a request.
func (s *signer) read(text string, now time.Time, req *inference.Request) (*pledge, error) {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) != ticketBody+ticketMAC || !hmac.Equal(b[ticketBody:], s.sum(b[:ticketBody])) {
		return nil, errForged
	}
	p := &pledge{
		due: time.UnixMilli(int64(binary.BigEndian.Uint64(b[8:]))), tenant: binary.BigEndian.Uint64(b[16:]),
		body: binary.BigEndian.Uint64(b[24:]), nonce: binary.BigEndian.Uint64(b[32:]),
	}
	switch {
	case binary.BigEndian.Uint64(b[0:]) != nameHash(req.Model) || p.tenant != nameHash(req.Tenant) || b[40] != byte(req.Class) || p.body != bodyHash(req):
		return nil, errOther
	case now.Before(p.due):
		return nil, errEarly
	case now.Sub(p.due) > ticketExpiry:
		return nil, errLate
	}
	return p, nil
}

// bodyHash recognises a request that comes again.
func bodyHash(req *inference.Request) uint64 {
	sum := sha256.Sum256(req.Body)
	return binary.BigEndian.Uint64(sum[:])
}

// nameHash stands for a name in tickets: FNV-1a (Fowler, Noll, Vo), the same in
// every gateway.
func nameHash(name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never fails
	return h.Sum64()
}

// newNonce draws a number that names a ticket; it is not 0.
func newNonce() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return binary.BigEndian.Uint64(b[:]) | 1
}
