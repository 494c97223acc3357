package config

import (
	"errors"
	"fmt"

	"github.com/spillway/spillway/internal/store"
	"github.com/spillway/spillway/internal/store/redis"
	"github.com/spillway/spillway/internal/store/sql"
)

// Store is the section `store`: where things are kept.
type Store struct {
	store.Config `yaml:",inline"`
	// Databases, for what files are too small for: answers of the cache.
	SQL sql.Config `yaml:"sql"`
	// A Redis or Valkey that gateways share.
	Redis redis.Config `yaml:"redis"`
}

// defaultStore is the section of a file that says nothing.
func defaultStore() Store {
	return Store{Config: store.Default(), SQL: sql.Default(), Redis: redis.Default()}
}

// Validate returns every mistake in the section.
func (s *Store) Validate() error {
	return errors.Join(s.Config.Validate(), under("sql", s.SQL.Validate()), under("redis", s.Redis.Validate()))
}

// under puts a key in front of every mistake.
func under(key string, err error) error {
	var errs []error
	for _, e := range split(err) {
		errs = append(errs, fmt.Errorf("%s.%w", key, e))
	}
	return errors.Join(errs...)
}
