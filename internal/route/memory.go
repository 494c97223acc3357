package route

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/spillway/spillway/internal/fleet"
)

// maxLists bounds the lists of nodes that a memory knows at once. A policy sees
// the primaries and the backups of each set of pools that serves some model;
// lists of old snapshots make way.
const maxLists = 32

// memory is what a policy keeps for each node. It belongs to the node's name, so
// it survives snapshots and is shared by all lists in which the node stands. A
// node that is in none of the last maxLists lists is forgotten.
type memory[T any] struct {
	create func(*fleet.Node) *T

	// lists is known by the address of a list's first element, which stays its
	// own as long as this map holds it.
	lists atomic.Pointer[map[**fleet.Node][]*T]

	mu struct {
		sync.Mutex
		young, old map[uint64]*T // by Node.Hash
	}
}

// newMemory returns an empty memory. create makes the state of a node seen for
// the first time.
func newMemory[T any](create func(*fleet.Node) *T) *memory[T] {
	m := &memory[T]{create: create}
	m.mu.young = make(map[uint64]*T)
	m.lists.Store(&map[**fleet.Node][]*T{})
	return m
}

// of returns the states of nodes, in their order. The slice is shared.
func (m *memory[T]) of(nodes []*fleet.Node) []*T {
	if len(nodes) == 0 {
		return nil
	}
	if states, ok := (*m.lists.Load())[&nodes[0]]; ok && len(states) == len(nodes) {
		return states
	}
	return m.bind(nodes)
}

// bind learns a list. It is the one place that allocates.
func (m *memory[T]) bind(nodes []*fleet.Node) []*T {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := *m.lists.Load()
	if states, ok := known[&nodes[0]]; ok && len(states) == len(nodes) {
		return states
	}
	if len(known) < maxLists {
		known = maps.Clone(known)
	} else {
		known = make(map[**fleet.Node][]*T)
		m.mu.old, m.mu.young = m.mu.young, make(map[uint64]*T)
	}
	states := make([]*T, len(nodes))
	for i, n := range nodes {
		states[i] = m.state(n)
	}
	known[&nodes[0]] = states
	m.lists.Store(&known)
	return states
}

// state finds or makes the state of a node. The caller holds mu.
func (m *memory[T]) state(n *fleet.Node) *T {
	s, ok := m.mu.young[n.Hash]
	if !ok {
		if s, ok = m.mu.old[n.Hash]; !ok {
			s = m.create(n)
		}
		m.mu.young[n.Hash] = s
	}
	return s
}

// find returns the state of a node that stands in some list, or nil.
func (m *memory[T]) find(n *fleet.Node) *T {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.mu.young[n.Hash]; ok {
		return s
	}
	return m.mu.old[n.Hash]
}
