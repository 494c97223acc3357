package sql

import (
	"fmt"

	"github.com/spillway/spillway/internal/store/sql"
)

// Migrations are the tables of the keys: identity_00, and identity_version_00 with the
// number of changes. Names are bytes: databases compare texts as people do, which would
// take one tenant for another.
func Migrations() sql.Migrations {
	return sql.Migrations{Name: "identity", Steps: []sql.Step{first}}
}

// first makes the tables.
func first(d sql.Dialect) []string {
	number, short, long, sum := "INTEGER", "BLOB", "BLOB", "BLOB"
	switch d {
	case sql.Postgres:
		number, short, long, sum = "BIGINT", "BYTEA", "BYTEA", "BYTEA"
	case sql.MySQL:
		number, short, long, sum = "BIGINT", "VARBINARY(64)", "BLOB", "BINARY(32)"
	}
	table, version := sql.Table("identity", 0), sql.Table("identity_version", 0)
	text := fmt.Sprintf("CREATE TABLE IF NOT EXISTS %[1]s (id %[3]s NOT NULL PRIMARY KEY, kind %[2]s NOT NULL, digest %[5]s NOT NULL UNIQUE, "+
		"tenant %[3]s NOT NULL, class %[3]s NOT NULL, models %[4]s NOT NULL, expires_ms %[2]s NOT NULL, revoked_ms %[2]s NOT NULL, "+
		"rps %[2]s NOT NULL, rpm %[2]s NOT NULL, tpm %[2]s NOT NULL, concurrent %[2]s NOT NULL, tokens_per_day %[2]s NOT NULL, tokens_per_month %[2]s NOT NULL)",
		table, number, short, long, sum)
	one := "CREATE TABLE IF NOT EXISTS " + version + " (id " + number + " NOT NULL PRIMARY KEY, changes " + number + " NOT NULL)"
	if d == sql.MySQL {
		text, one = text+" ENGINE=InnoDB", one+" ENGINE=InnoDB"
	}
	return []string{text, one}
}

// columns are those of a row, in the order in which they are read and written.
const columns = "id, kind, digest, tenant, class, models, expires_ms, revoked_ms, rps, rpm, tpm, concurrent, tokens_per_day, tokens_per_month"

// texts are the statements.
type texts struct {
	version string // how often the keys have changed
	count   string // one change more
	next    string // a page behind an id
	one     string // by its id
	taken   string // how many have an id or digest
	sum     string // how many there are
	put     string
	end     string // when a key ends
}

// textsOf writes them for a shard.
func textsOf(s *sql.Shard) texts {
	d, table, version := s.Dialect(), s.Table("identity"), s.Table("identity_version")
	grown := " ON CONFLICT (id) DO UPDATE SET changes = " + version + ".changes + 1"
	if d == sql.MySQL {
		grown = " ON DUPLICATE KEY UPDATE changes = changes + 1"
	}
	return texts{
		version: "SELECT changes FROM " + version + " WHERE id = 1",
		count:   "INSERT INTO " + version + " (id, changes) VALUES (1, 1)" + grown,
		next:    d.Bind("SELECT " + columns + " FROM " + table + " WHERE id > ? ORDER BY id LIMIT ?"),
		one:     d.Bind("SELECT " + columns + " FROM " + table + " WHERE id = ?"),
		taken:   d.Bind("SELECT COUNT(*) FROM " + table + " WHERE id = ? OR digest = ?"),
		sum:     "SELECT COUNT(*) FROM " + table,
		put:     d.Bind("INSERT INTO " + table + " (" + columns + ") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"),
		end:     d.Bind("UPDATE " + table + " SET expires_ms = ?, revoked_ms = ? WHERE id = ?"),
	}
}
