package preload

import (
	"encoding/binary"
	"sync"

	"github.com/spillway/spillway/internal/inference"
)

// counter is one key that is counted.
type counter struct {
	key    [32]byte
	weight float64 // asks, decayed forward; not below the true number
	at     int     // in the heap
	asks   uint32  // since it is counted
	tokens int64   // that the answer has; 0 is not known
	seen   [2]uint32
	expect [2]float32         // what was forecast for the windows of seen
	kept   *inference.Request // nil: not hot enough, or no room
	size   int64              // of kept
	series series             // of the windows that are closed
}

// doorkeeper remembers keys that were asked once: two Bloom filters (Bloom 1970), of
// which the older is forgotten when the newer is full, as in TinyLFU (Einziger,
// Friedman, Manes, ACM Transactions on Storage 13, 2017). Without it a stream of
// questions that never come again would push warm keys out of the counters.
type doorkeeper struct {
	bits [2][]uint64
	in   int // in the newer one
	room int
}

// doorBits is the number of bits a key: with three hashes 3% of unknown keys pass.
const doorBits = 8

// newDoorkeeper remembers between room and twice as many keys.
func newDoorkeeper(room int) doorkeeper {
	words := (room*doorBits + 63) / 64
	return doorkeeper{bits: [2][]uint64{make([]uint64, words), make([]uint64, words)}, room: room}
}

// pass says whether the key was seen before, and remembers it. Keys are hashes:
// their bytes are the filters' hash functions.
func (d *doorkeeper) pass(key *[32]byte) bool {
	var known [2]int
	n := uint32(len(d.bits[0]) * 64)
	for i := range 3 {
		bit := binary.LittleEndian.Uint32(key[8+4*i:]) % n
		for j := range d.bits {
			if d.bits[j][bit/64]&(1<<(bit%64)) != 0 {
				known[j]++
			}
		}
		d.bits[0][bit/64] |= 1 << (bit % 64)
	}
	if known[0] == 3 {
		return true
	}
	if d.in++; d.in >= d.room {
		d.bits[0], d.bits[1] = d.bits[1], d.bits[0]
		clear(d.bits[0])
		d.in = 0
	}
	return known[1] == 3
}

// space is the Space-Saving summary of a shard's keys (Metwally, Agrawal and El
// Abbadi, "Efficient computation of frequent and top-k elements in data streams",
// ICDT 2005): as many counters as there is room for, and a new key takes the
// smallest one over with its count. Counts decay forward (Cormode, Shkapenyuk,
// Srivastava and Xu, ICDE 2009): newer asks weigh more, so nothing is ever
// touched to let it age.
type space struct {
	sync.Mutex
	counters map[[32]byte]*counter
	heap     []*counter // the smallest weight first
	room     int
	door     doorkeeper
	head     int64   // number of the newest window; the one before is open too
	unit     float64 // the weight of an ask now
	bytes    int64   // of kept requests
	maxBytes int64
	floor    float64 // when there was no room for another request: the least weight that keeps one
	facts    facts

	forgotten int // how often the kept requests were dropped
}

// facts are what a shard counts of itself.
type facts struct {
	asks, hits, late, passed int64   // passed over at the door
	keys, kept, bytes        int64   // held now
	expected, came, missed   float64 // forecast, counted, and the sum of their distances
}

// add sums facts up.
func (f *facts) add(o facts) {
	f.asks, f.hits, f.late, f.passed = f.asks+o.asks, f.hits+o.hits, f.late+o.late, f.passed+o.passed
	f.keys, f.kept, f.bytes = f.keys+o.keys, f.kept+o.kept, f.bytes+o.bytes
	f.expected, f.came, f.missed = f.expected+o.expected, f.came+o.came, f.missed+o.missed
}

// doorShare is how many keys the doorkeeper remembers by the number counted.
const doorShare = 8

// prepare makes an empty space.
func (s *space) prepare(room int, maxBytes int64) {
	s.counters = make(map[[32]byte]*counter, room)
	s.heap = make([]*counter, 0, room)
	s.room, s.maxBytes, s.unit = room, maxBytes, 1
	s.door = newDoorkeeper(room * doorShare)
}

// count counts an ask of the window back windows before the newest. It returns nil
// for a key that is not counted.
func (s *space) count(key *[32]byte, back int64) *counter {
	c := s.counters[*key]
	switch {
	case c != nil:
		c.asks++
		c.seen[back]++
	case len(s.heap) < s.room:
		// The first ask says nothing of a second one: of questions most come once. It is
		// left out of the series, which is the absolute discount of 1 (Ney, Essen and
		// Kneser, Computer Speech and Language 8, 1994).
		c = &counter{key: *key, at: len(s.heap), asks: 1}
		s.heap = append(s.heap, c)
		s.counters[*key] = c
		s.up(c.at)
	case s.door.pass(key):
		c = s.heap[0]
		delete(s.counters, c.key)
		s.drop(c)
		*c = counter{key: *key, weight: c.weight, asks: 2}
		c.seen[back] = 1
		s.counters[*key] = c
	default:
		s.facts.passed++
		return nil
	}
	c.weight += s.unit
	s.down(c.at)
	return c
}

// up moves a counter towards the smallest.
func (s *space) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if s.heap[parent].weight <= s.heap[i].weight {
			return
		}
		s.swap(i, parent)
		i = parent
	}
}

// down moves a counter away from it.
func (s *space) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(s.heap); child++ {
			if s.heap[child].weight < s.heap[least].weight {
				least = child
			}
		}
		if least == i {
			return
		}
		s.swap(i, least)
		i = least
	}
}

// swap exchanges two counters.
func (s *space) swap(i, j int) {
	s.heap[i], s.heap[j] = s.heap[j], s.heap[i]
	s.heap[i].at, s.heap[j].at = i, j
}

// drop forgets a counter's request.
func (s *space) drop(c *counter) {
	s.bytes -= c.size
	c.kept, c.size = nil, 0
}

// hot is the number of asks from which a request is kept.
const hot = 2

// wants says whether a hot counter's request should be copied: there is room, or a
// colder request to give up for it.
func (s *space) wants(c *counter, size int64) bool {
	if size > s.maxBytes {
		return false
	}
	if s.bytes+size <= s.maxBytes {
		return true
	}
	if c.weight <= s.floor {
		return false
	}
	if o := s.coldest(); o != nil && o.weight >= c.weight {
		s.floor = o.weight
		return false
	}
	return true
}

// coldest is the counter of the least weight that has a request.
func (s *space) coldest() *counter {
	var least *counter
	for _, o := range s.heap {
		if o.kept != nil && (least == nil || o.weight < least.weight) {
			least = o
		}
	}
	return least
}

// keep keeps a copy of the counter's request, at the cost of colder ones.
func (s *space) keep(c *counter, req *inference.Request, size int64) {
	for s.bytes+size > s.maxBytes {
		o := s.coldest()
		if o == nil || o.weight >= c.weight {
			return
		}
		s.drop(o)
	}
	c.kept, c.size = req, size
	s.bytes += size
}
