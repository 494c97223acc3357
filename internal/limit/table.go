package limit

// none is no entry.
const none = ^uint32(0)

// chunk is how many entries are reserved at once.
const chunk = 256

// entry is one metered bucket: 40 bytes without pointers, which the garbage collector
// does not look into.
type entry struct {
	key   Key
	tat   int64 // theoretical arrival time, Unix nanoseconds: when the bucket is full
	newer uint32
	older uint32
	chain uint32 // the next with the same head, or the next free one
	_     uint32
}

// table keeps the buckets of one shard: a hash table with chains and a list by use,
// within slabs. It is bounded by its caller's most.
type table struct {
	slabs []*[chunk]entry
	heads []uint32
	n     int    // in use
	made  uint32 // ever
	free  uint32
	front uint32 // the last used
	back  uint32
	idle  uint64 // evictions of buckets that were full, which lose nothing
	live  uint64 // evictions of others
}

// newTable returns an empty table.
func newTable() table {
	t := table{heads: make([]uint32, 16), free: none, front: none, back: none}
	for i := range t.heads {
		t.heads[i] = none
	}
	return t
}

// at returns an entry by its number.
func (t *table) at(i uint32) *entry { return &t.slabs[i/chunk][i%chunk] }

// head is the begin of a key's chain.
func (t *table) head(k Key) *uint32 { return &t.heads[k[0]&uint64(len(t.heads)-1)] }

// find returns the entry of a key and makes it the last used, or returns nil.
func (t *table) find(k Key) *entry {
	for i := *t.head(k); i != none; {
		e := t.at(i)
		if e.key == k {
			if i != t.front {
				t.unlink(e)
				t.link(i, e)
			}
			return e
		}
		i = e.chain
	}
	return nil
}

// link puts an entry to the front.
func (t *table) link(i uint32, e *entry) {
	e.newer, e.older = none, t.front
	if t.front != none {
		t.at(t.front).newer = i
	} else {
		t.back = i
	}
	t.front = i
}

// unlink takes an entry out of the list.
func (t *table) unlink(e *entry) {
	if e.newer != none {
		t.at(e.newer).older = e.older
	} else {
		t.front = e.older
	}
	if e.older != none {
		t.at(e.older).newer = e.newer
	} else {
		t.back = e.newer
	}
}

// add makes an entry for a key that has none. With most entries or more in use it
// evicts first: two, so that a table whose bound was lowered shrinks.
func (t *table) add(k Key, now int64, most int) *entry {
	for range 2 {
		if t.n >= most {
			t.evict(now)
		}
	}
	i := t.free
	if i != none {
		t.free = t.at(i).chain
	} else {
		i = t.made
		if i%chunk == 0 {
			t.slabs = append(t.slabs, new([chunk]entry))
		}
		t.made++
	}
	if t.n++; t.n > len(t.heads) {
		t.grow()
	}
	e, h := t.at(i), t.head(k)
	*e = entry{key: k, chain: *h}
	*h = i
	t.link(i, e)
	return e
}

// grow doubles the heads.
func (t *table) grow() {
	t.heads = make([]uint32, 2*len(t.heads))
	for i := range t.heads {
		t.heads[i] = none
	}
	for i := t.front; i != none; {
		e := t.at(i)
		h := t.head(e.key)
		e.chain, *h = *h, i
		i = e.older
	}
}

// sample is how many of the longest unused entries are looked at to evict one.
const sample = 8

// evict removes one entry. A bucket that is full again is as good as one that never
// was, so the first such among the longest unused goes. Where there is none, the one
// that will be full first goes, and the others that were looked at get a second chance
// at the front: a flood of new subjects, each a little in use, pushes out its own
// kind, and those that are at their limit stay.
func (t *table) evict(now int64) {
	worst := t.back
	for i, seen := t.back, 0; i != none && seen < sample; seen++ {
		e := t.at(i)
		if e.tat <= now {
			t.idle++
			t.remove(i)
			return
		}
		if e.tat < t.at(worst).tat {
			worst = i
		}
		i = e.newer
	}
	if worst == none {
		return
	}
	t.live++
	t.remove(worst)
	for range min(sample-1, t.n) {
		i := t.back
		e := t.at(i)
		t.unlink(e)
		t.link(i, e)
	}
}

// remove forgets an entry.
func (t *table) remove(i uint32) {
	e := t.at(i)
	t.unlink(e)
	h := t.head(e.key)
	for *h != i {
		h = &t.at(*h).chain
	}
	*h = e.chain
	*e = entry{chain: t.free}
	t.free = i
	t.n--
}

// bytes is what the table takes.
func (t *table) bytes() int { return len(t.slabs)*chunk*40 + len(t.heads)*4 }
