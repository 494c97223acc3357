package fleet

import "context"

// Target is one instance as a source of discovery knows it.
type Target struct {
	URL         string `yaml:"url" json:"url"`                     // scheme://host:port with an optional base path
	Weight      int    `yaml:"weight" json:"weight"`               // share of the pool's work; 0 counts as 1
	Backup      bool   `yaml:"backup" json:"backup"`               // used only when no other instance of the pool is open
	MaxInFlight int64  `yaml:"max_in_flight" json:"max_in_flight"` // most requests at once; 0 takes the pool's default
}

// Source finds the instances of one pool.
type Source interface {
	// Run calls update with the whole set of targets at the start and after
	// every change, from one goroutine, until ctx ends. It keeps trying after
	// errors and never reports an empty set because of one; an answer that is
	// truly empty is passed on, and Fleet keeps the last known set. The slice
	// belongs to the callee.
	Run(ctx context.Context, update func([]Target)) error
}
