package sql

import (
	"fmt"
	"strings"

	"github.com/spillway/spillway/internal/store/sql"
)

// Migrations are the tables of the level: cache_00 to cache_15. The names of scopes
// and models are bytes: databases compare texts as people do, which would take one
// tenant for another.
func Migrations() sql.Migrations {
	return sql.Migrations{Name: "cache", Steps: []sql.Step{first, second}}
}

// first makes the tables.
func first(d sql.Dialect) (list []string) {
	number, binary, hash := "INTEGER", "BLOB", "BLOB"
	switch d {
	case sql.Postgres:
		number, binary, hash = "BIGINT", "BYTEA", "BYTEA"
	case sql.MySQL:
		number, binary, hash = "BIGINT", "LONGBLOB", "BINARY(32)"
	}
	for n := range sql.Shards {
		table := sql.Table("cache", n)
		text := fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (hash %s NOT NULL PRIMARY KEY, scope %s NOT NULL, model %s NOT NULL, "+
			"stale_ms %s NOT NULL, size %s NOT NULL, data %s NOT NULL", table, hash, binary, binary, number, number, binary)
		index := table + "_stale"
		switch d {
		case sql.MySQL:
			list = append(list, text+", INDEX "+index+" (stale_ms, size)) ENGINE=InnoDB")
		case sql.Postgres: // what is large was compressed before
			list = append(list, text+")", "ALTER TABLE "+table+" ALTER COLUMN data SET STORAGE EXTERNAL")
			fallthrough
		default:
			if d == sql.SQLite {
				list = append(list, text+")")
			}
			list = append(list, "CREATE INDEX IF NOT EXISTS "+index+" ON "+table+" (stale_ms, size)")
		}
	}
	return list
}

// second adds when an answer was stored, by which a newer one stays. MySQL makes its
// tables anew: it cannot undo half of this, and not every one of them knows how to add
// what may be there.
func second(d sql.Dialect) (list []string) {
	if d == sql.MySQL {
		for n := range sql.Shards {
			list = append(list, "DROP TABLE IF EXISTS "+sql.Table("cache", n))
		}
		list = append(list, first(d)...)
	}
	for n := range sql.Shards {
		list = append(list, "ALTER TABLE "+sql.Table("cache", n)+" ADD COLUMN stored_ms BIGINT NOT NULL DEFAULT 0")
	}
	return list
}

// columns are as many as a row has.
const columns = 7

// texts are the statements for a shard.
type texts struct {
	dialect    sql.Dialect
	table      string
	get        string // entry by key
	past       string // is something past its life?
	sum        string // number and bytes
	deletePast string
	deleteNext string // those nearest to their end
	rows       int    // that put takes at most
	puts       [maxRows + 1]string
}

// textsOf writes them.
func textsOf(s *sql.Shard) texts {
	d, table := s.Dialect(), s.Table("cache")
	t := texts{dialect: d, table: table, rows: maxRows}
	if d == sql.SQLite { // its statements are compiled here, and there is no way to a server to save
		t.rows = 1
	}
	t.get = d.Bind("SELECT data FROM " + table + " WHERE hash = ?")
	t.past = d.Bind("SELECT COUNT(*) FROM (SELECT 1 FROM " + table + " WHERE stale_ms < ? LIMIT 1) AS past")
	t.sum = "SELECT COUNT(*), COALESCE(SUM(size), 0) FROM " + table
	t.deletePast = t.limited("WHERE stale_ms < ?", fmt.Sprint(maxDelete))
	t.deleteNext = t.limited("ORDER BY stale_ms", "?")
	for n := 1; n <= t.rows; n++ {
		values := strings.Repeat(", (?, ?, ?, ?, ?, ?, ?)", n)
		t.puts[n] = d.Bind("INSERT INTO "+table+" (hash, scope, model, stale_ms, size, data, stored_ms) VALUES "+values[2:]) + upsert(d, table)
	}
	return t
}

// upsert is the end of an INSERT that replaces the row that has the same key, unless
// that was stored later.
func upsert(d sql.Dialect, table string) string {
	if d != sql.MySQL {
		return d.Upsert("hash", "scope", "model", "stale_ms", "size", "data", "stored_ms") + " WHERE EXCLUDED.stored_ms >= " + table + ".stored_ms"
	}
	text := " ON DUPLICATE KEY UPDATE "
	for _, c := range [...]string{"scope", "model", "stale_ms", "size", "data"} {
		text += c + " = IF(VALUES(stored_ms) >= stored_ms, VALUES(" + c + "), " + c + "), "
	}
	return text + "stored_ms = GREATEST(VALUES(stored_ms), stored_ms)" // the last: what is assigned is seen by what follows
}

// put is the statement that writes n rows.
func (t *texts) put(n int) string { return t.puts[n] }

// limited is a statement that deletes at most as many rows as limit says.
func (t *texts) limited(which, limit string) string {
	if t.dialect == sql.MySQL {
		return "DELETE FROM " + t.table + " " + which + " LIMIT " + limit
	}
	return t.dialect.Bind("DELETE FROM " + t.table + " WHERE hash IN (SELECT hash FROM " + t.table + " " + which + " LIMIT " + limit + ")")
}

// deleteSome is a statement that deletes rows of which all conditions are true, a
// bounded number of them.
func (t *texts) deleteSome(conditions []string) string {
	which := ""
	if len(conditions) > 0 {
		which = "WHERE " + strings.Join(conditions, " AND ")
	}
	return t.limited(which, fmt.Sprint(maxDelete))
}
