package sql

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
)

// source is a parsed DSN. Its name is for people and holds no secret.
type source struct {
	dialect  Dialect
	name     string
	path     string // of a SQLite file; "" is nowhere
	postgres *pgx.ConnConfig
	mysql    *mysql.Config
}

// defaultFile is the database of a gateway without a list of databases.
const defaultFile = "sqlite:spillway.db"

// Errors of DSNs never quote them: a wrong one is cut in the wrong places, and any
// piece of it may be the password.
var (
	errScheme   = errors.New("want an address that begins with postgres, mysql or sqlite and a colon")
	errPostgres = errors.New("not an address of PostgreSQL: want postgres://user:password@host:5432/name?sslmode=..., special characters of the password percent-encoded")
	errMySQL    = errors.New("not an address of MySQL: want mysql://user:password@host:3306/name, special characters of the password percent-encoded, or mysql://user:password@unix(/path/to/socket)/name")
	errNoName   = errors.New("names no database behind the host")
)

// parseDSN reads a DSN. Paths of SQLite are relative to dir.
func parseDSN(dsn, dir string) (*source, error) {
	scheme, rest, ok := strings.Cut(dsn, ":")
	switch {
	case ok && scheme == "sqlite":
		return parseSQLite(strings.TrimPrefix(rest, "//"), dir)
	case ok && (scheme == "postgres" || scheme == "postgresql"):
		return parsePostgres(dsn)
	case ok && (scheme == "mysql" || scheme == "mariadb"):
		return parseMySQL(strings.TrimPrefix(rest, "//"))
	}
	return nil, errScheme
}

// parseSQLite reads a path.
func parseSQLite(path, dir string) (*source, error) {
	if path == "" || strings.ContainsRune(path, 0) {
		return nil, fmt.Errorf("sqlite: %q is no path", path)
	}
	src := &source{dialect: SQLite, name: "sqlite:" + path, path: path}
	if !filepath.IsAbs(path) {
		src.path = ""
		if dir != "" {
			src.path = filepath.Join(dir, path)
		}
	}
	return src, nil
}

// uri is the address of a SQLite file with parameters of the driver. The file must
// exist.
func (s *source) uri(params string) string {
	path := filepath.ToSlash(s.path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // C:/...
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: "mode=rw&_dqs=0&_error_rc=1&" + params}).String()
}

// parsePostgres reads a URL as the driver does.
func parsePostgres(dsn string) (*source, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, errPostgres
	}
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		if file := new(fs.PathError); errors.As(err, &file) {
			return nil, fmt.Errorf("a file of its parameters: %w", file)
		}
		return nil, errPostgres
	}
	if strings.Trim(u.Path, "/") == "" && !u.Query().Has("dbname") && !u.Query().Has("service") {
		return nil, errNoName
	}
	at := net.JoinHostPort(cfg.Host, fmt.Sprint(cfg.Port))
	if strings.HasPrefix(cfg.Host, "/") {
		at = fmt.Sprintf("unix(%s/.s.PGSQL.%d)", cfg.Host, cfg.Port)
	}
	return &source{dialect: Postgres, name: "postgres://" + at + "/" + cfg.Database, postgres: cfg}, nil
}

// parseMySQL reads what follows mysql://, in the form of a URL or of the driver.
func parseMySQL(rest string) (*source, error) {
	if !strings.Contains(rest, "tcp(") && !strings.Contains(rest, "unix(") {
		native, err := nativeMySQL(rest)
		if err != nil {
			return nil, err
		}
		rest = native
	}
	cfg, err := mysql.ParseDSN(rest)
	if err != nil {
		return nil, errMySQL
	}
	if cfg.DBName == "" {
		return nil, errNoName
	}
	if cfg.Net != "tcp" && cfg.Net != "unix" {
		return nil, errMySQL
	}
	// One round trip a statement; the driver's escaping knows the session's sql_mode
	// and refuses character sets in which it would not be safe.
	cfg.InterpolateParams = true
	cfg.MultiStatements, cfg.AllowAllFiles = false, false
	cfg.RejectReadOnly = true // after a failover: ask for a connection to the new primary
	cfg.Logger = &mysql.NopLogger{}
	if cfg.Params == nil {
		cfg.Params = make(map[string]string)
	}
	if cfg.Params["sql_mode"] == "" { // what does not fit is an error, not cut
		cfg.Params["sql_mode"] = "CONCAT(@@sql_mode,',STRICT_ALL_TABLES')"
	}
	at := cfg.Addr
	if cfg.Net == "unix" {
		at = "unix(" + at + ")"
	}
	return &source{dialect: MySQL, name: "mysql://" + at + "/" + cfg.DBName, mysql: cfg}, nil
}

// nativeMySQL turns the form of a URL into that of the driver.
func nativeMySQL(rest string) (string, error) {
	u, err := url.Parse("mysql://" + rest)
	if err != nil || u.Host == "" || u.Fragment != "" {
		return "", errMySQL
	}
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = "3306"
	}
	who := ""
	if u.User != nil {
		password, _ := u.User.Password()
		if strings.ContainsAny(u.User.Username(), ":@/") {
			return "", errMySQL
		}
		who = u.User.Username() + ":" + password + "@"
	}
	name := url.PathEscape(strings.TrimPrefix(u.Path, "/"))
	return fmt.Sprintf("%stcp(%s)/%s?%s", who, net.JoinHostPort(host, port), name, u.RawQuery), nil
}
