package sql

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"
)

// What Read and Write say beside what a database says.
var (
	// ErrAbsent: nothing was ever written to this database, and so nothing was created.
	ErrAbsent = errors.New("nothing is kept yet")
	// ErrBusy: as many writes wait as may.
	ErrBusy = errors.New("too many writes wait")
	// ErrClosed: Run has ended.
	ErrClosed = errors.New("the databases are closed")
)

// Fault is a kind of failure of a database, for metrics.
type Fault uint8

// The kinds of failure.
const (
	FaultConnect  Fault = iota // no connection, or it broke
	FaultTimeout               // no answer in time
	FaultLocked                // somebody else holds what is needed for too long
	FaultFull                  // no room on the disk
	FaultReadOnly              // writes are refused
	FaultCorrupt               // a damaged file
	FaultBusy                  // ErrBusy
	FaultOther                 // anything else that a database says
	faults
	faultConflict // two transactions want the same: one of them is done again
	noFault       // not of a database's making
)

// String is the kind in a word.
func (f Fault) String() string {
	return [...]string{"connect", "timeout", "locked", "full", "read_only", "corrupt", "busy", "other"}[f]
}

// advice says what a kind of failure means, where the databases say it in riddles.
func (f Fault) advice() string {
	switch f {
	case FaultLocked:
		return "another process holds it"
	case FaultFull:
		return "the disk is full"
	case FaultReadOnly:
		return "it is read-only"
	case FaultCorrupt:
		return "the file is damaged or no database: move it away to begin with an empty one"
	default:
		return ""
	}
}

// classify finds the kind of a failure; noFault when no database said so.
func classify(err error) Fault {
	var (
		lite  *sqlite.Error
		pg    *pgconn.PgError
		my    *mysql.MySQLError
		dial  *pgconn.ConnectError
		netOp net.Error
	)
	switch {
	case err == nil || errors.Is(err, sql.ErrNoRows):
		return noFault
	case errors.Is(err, ErrBusy):
		return FaultBusy
	case errors.As(err, &lite):
		return ofSQLite(lite.Code())
	case errors.As(err, &pg):
		return ofPostgres(pg.Code)
	case errors.As(err, &my):
		return ofMySQL(my.Number)
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &netOp) && netOp.Timeout():
		return FaultTimeout
	case errors.As(err, &dial) || errors.As(err, &netOp) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, errClosedPool):
		return FaultConnect
	case errors.Is(err, sql.ErrTxDone):
		return FaultOther
	case err.Error() == closedPool:
		return FaultConnect
	}
	return noFault
}

// closedPool is the text of an error of database/sql that has no name.
const closedPool = "sql: database is closed"

// ofSQLite reads a result code.
func ofSQLite(code int) Fault {
	switch code & 0xff {
	case lib.SQLITE_BUSY, lib.SQLITE_LOCKED, lib.SQLITE_PROTOCOL:
		return FaultLocked
	case lib.SQLITE_FULL:
		return FaultFull
	case lib.SQLITE_READONLY, lib.SQLITE_PERM, lib.SQLITE_AUTH:
		return FaultReadOnly
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
		return FaultCorrupt
	case lib.SQLITE_CANTOPEN:
		return FaultConnect
	case lib.SQLITE_INTERRUPT:
		return FaultTimeout
	case lib.SQLITE_CONSTRAINT: // what was written does not fit
		return noFault
	}
	return FaultOther
}

// ofPostgres reads a SQLSTATE (PostgreSQL documentation, appendix A).
func ofPostgres(code string) Fault {
	switch code {
	case "40001", "40P01": // serialization_failure, deadlock_detected
		return faultConflict
	case "53100": // disk_full
		return FaultFull
	case "25006": // read_only_sql_transaction
		return FaultReadOnly
	case "55P03": // lock_not_available
		return FaultLocked
	case "57014": // query_canceled
		return FaultTimeout
	case "57P01", "57P02", "57P03", "53300": // shutting down, starting up, too many connections
		return FaultConnect
	case "XX001", "XX002": // data_corrupted, index_corrupted
		return FaultCorrupt
	}
	switch {
	case strings.HasPrefix(code, "08") || strings.HasPrefix(code, "28"): // connection, authorization
		return FaultConnect
	case strings.HasPrefix(code, "23"): // integrity constraint: what was written does not fit
		return noFault
	}
	return FaultOther
}

// ofMySQL reads an error number (MySQL and MariaDB server error references).
func ofMySQL(number uint16) Fault {
	switch number {
	case 1213: // ER_LOCK_DEADLOCK
		return faultConflict
	case 1021, 1114: // ER_DISK_FULL, ER_RECORD_FILE_FULL
		return FaultFull
	case 1290, 1792, 1836: // --read-only, transaction or database is read-only
		return FaultReadOnly
	case 1205: // ER_LOCK_WAIT_TIMEOUT
		return FaultLocked
	case 1317, 1969, 3024: // interrupted; max_statement_time; max_execution_time
		return FaultTimeout
	case 1040, 1044, 1045, 1049, 1053, 1129, 1203: // too many, denied, unknown database, shutdown
		return FaultConnect
	case 1034, 1194, 1712: // index or table is corrupt
		return FaultCorrupt
	case 1048, 1062, 1451, 1452: // constraints: what was written does not fit
		return noFault
	}
	return FaultOther
}

// explain puts the database's name before what it says. Errors that are not a
// database's stay as they are.
func explain(name string, err error) error {
	fault := classify(err)
	if fault == noFault {
		return err
	}
	if fault < faults && fault.advice() != "" {
		return fmt.Errorf("%s: %s: %w", name, fault.advice(), err)
	}
	return fmt.Errorf("%s: %w", name, err)
}
