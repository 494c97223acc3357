// Package sql keeps what files are too small for: in SQLite, PostgreSQL, MySQL or
// MariaDB, in one database or several.
//
// What is kept is divided by a hash into 16 logical shards, each with tables of its
// own whose names end in its number (Shard.Table). The configuration maps shards to
// databases; every database has the tables of all shards, so that a shard can move.
// A feature, such as the cache, gives Open the Migrations that make its tables. They
// are applied under a lock before anything else uses a database; gateways that start
// at the same instant wait for one another.
//
// Work is a function that gets a Conn. Read gives it a connection to a replica that
// answers and does not lag, or to the primary; ReadLatest one to the primary; Write
// and WriteRelaxed a transaction. Errors of databases name the database, never its
// password, and are counted by kind in Stats.
//
// A database that is down costs its caller at most its context, and does not keep
// the gateway from starting: connections are opened when they are needed, and
// migrations are tried until they succeed. Until then, work is refused with the
// reason.
//
// SQLite has one writer, which owns the only connection that changes the file, and
// takes up to 128 pieces of work into one transaction, so that they share its sync
// to the disk. When one of them fails, all are undone and each is done alone. Others
// read at the same time, on connections that cannot write. The file is created by
// the first write. It is never deleted, moved or replaced here, and of a file that
// was taken away a new one is made.
//
// Run owns all goroutines: for SQLite the writer, which also moves the write-ahead
// log into the file when there is time; for servers one that migrates and then
// measures replicas, and short ones that connect. When its context ends, writes that
// wait are done, what comes later is refused, and the databases are closed.
package sql

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"sync"
)

// Shards is the number of logical shards.
const Shards = 16

// Store is all databases. It is safe for concurrent use.
type Store struct {
	databases []*Database
	shards    [Shards]*Shard
}

// Shard is one of the 16 parts, and the database that keeps it.
type Shard struct {
	*Database
	Number int // 0 to 15
}

// Table is the name of the shard's part of a table.
func (s *Shard) Table(name string) string { return Table(name, s.Number) }

// Table is the name of a shard's part of a table.
func Table(name string, shard int) string { return fmt.Sprintf("%s_%02d", name, shard) }

// Open makes the databases of a configuration, with the tables of the given
// features. SQLite's paths are relative to dir; "" is nowhere. It creates nothing,
// connects to nothing and starts nothing: that is for Run. The error is that of a
// wrong configuration.
func Open(cfg Config, dir string, log *slog.Logger, sets ...Migrations) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	owners, err := cfg.owners()
	if err != nil {
		return nil, err
	}
	list := cfg.Databases
	if len(list) == 0 {
		list = []DatabaseConfig{{DSN: defaultFile}}
	}
	s := new(Store)
	for _, one := range list {
		d, err := newDatabase(&cfg, one, dir, log)
		if err != nil {
			return nil, err
		}
		d.sets = append([]Migrations{ownTables()}, sets...)
		s.databases = append(s.databases, d)
	}
	for n := range s.shards {
		s.shards[n] = &Shard{Database: s.databases[owners[n]], Number: n}
	}
	return s, nil
}

// Databases are all databases, in the order of the configuration. The list must not
// be changed.
func (s *Store) Databases() []*Database { return s.databases }

// Shard is a shard by its number.
func (s *Store) Shard(n int) *Shard { return s.shards[n] }

// ShardOf is the shard for something with an evenly distributed hash, by its first
// four bits.
func (s *Store) ShardOf(hash [sha256.Size]byte) *Shard { return s.shards[hash[0]>>4] }

// Run makes the databases work until ctx ends. It must be called once. The error is
// that of a driver that refuses its configuration.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for i, d := range s.databases {
		if err := d.open(); err != nil {
			for _, opened := range s.databases[:i] {
				opened.close()
			}
			return err
		}
	}
	for _, d := range s.databases {
		wg.Go(func() { d.run(ctx) })
	}
	wg.Wait()
	return nil
}

// Stats is how all pools are at this moment: none before Run and after it.
func (s *Store) Stats() (list []Stats) {
	for _, d := range s.databases {
		list = append(list, d.stats()...)
	}
	return list
}
