package sql

import "time"

// Stats is how one pool of connections is at this moment.
type Stats struct {
	Database string // its address without secrets
	Role     string // primary, replica; reader and writer of SQLite

	Open, InUse, Idle int           // connections
	Waits             int64         // for a connection, since the start
	Waited            time.Duration // for connections, all together

	// Of a primary or writer: writes that wait or are under way, and how many may.
	Queue, QueueMax int
	// Failures since the start, of a primary or writer with those of its queue.
	Faults [FaultOther + 1]int64

	Usable bool          // its tables are there; of a replica: it answers and is not behind
	Lag    time.Duration // of a replica
}
