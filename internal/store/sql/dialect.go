package sql

import (
	"database/sql"
	"strconv"
	"strings"

	"github.com/uptrace/bun/dialect/mysqldialect"
	"github.com/uptrace/bun/dialect/pgdialect"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	"github.com/uptrace/bun/schema"
)

// Dialect is a kind of database.
type Dialect uint8

// The dialects. MariaDB is MySQL.
const (
	SQLite Dialect = iota
	Postgres
	MySQL
)

// String is the name of a dialect, as in DSNs.
func (d Dialect) String() string { return [...]string{"sqlite", "postgres", "mysql"}[d] }

// Bind writes a statement's placeholders as the dialect has them: it takes `?`,
// which must not stand in a text within the statement.
func (d Dialect) Bind(query string) string {
	if d != Postgres {
		return query
	}
	var b strings.Builder
	n := 0
	for part := range strings.SplitSeq(query, "?") {
		if n > 0 {
			b.WriteByte('$')
			b.WriteString(strconv.Itoa(n))
		}
		b.WriteString(part)
		n++
	}
	return b.String()
}

// Upsert is the end of an INSERT that replaces columns of the row that has the same
// key, a column with a unique index.
func (d Dialect) Upsert(key string, columns ...string) string {
	format, separator := " ON CONFLICT ("+key+") DO UPDATE SET ", "EXCLUDED."
	if d == MySQL {
		format, separator = " ON DUPLICATE KEY UPDATE ", "VALUES("
	}
	var b strings.Builder
	b.WriteString(format)
	for i, c := range columns {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(c + " = " + separator + c)
		if d == MySQL {
			b.WriteByte(')')
		}
	}
	return b.String()
}

// builder is the dialect for bun.
func (d Dialect) builder() schema.Dialect {
	switch d {
	case Postgres:
		return pgdialect.New()
	case MySQL:
		return offline{mysqldialect.New()}
	default:
		return sqlitedialect.New()
	}
}

// offline is bun's dialect of MySQL without the question for the server's version,
// which it would ask without a time-out while a database is opened. What depends on
// the answer, MySQL and MariaDB do not have in common.
type offline struct{ *mysqldialect.Dialect }

// Init implements schema.Dialect.
func (offline) Init(*sql.DB) {}
