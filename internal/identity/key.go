package identity

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spillway/spillway/internal/inference"
)

// Key is what is known of an API key: everything but the key.
type Key struct {
	ID      string // public name, for logs, limits and commands
	Digest  Digest
	Tenant  string
	Class   inference.Class
	Models  []string // patterns (path.Match); nil is all
	Quota   inference.Quota
	Expires time.Time // zero is never
	Revoked time.Time // when it was; zero is never. It is kept for the list alone.
}

// Bounds of what is said about a key.
const (
	maxTenant  = 64 // bytes
	maxID      = 64
	maxModels  = 64
	maxPattern = 128
	maxQuota   = 1e15
)

// quota is a limit with its name in a keys file and in the configuration.
type quota struct {
	name, key string
	in        func(*inference.Quota) *int64
}

// quotas are all limits of a key.
var quotas = []quota{
	{"rps", "requests_per_second", func(q *inference.Quota) *int64 { return &q.RequestsPerSecond }},
	{"rpm", "requests_per_minute", func(q *inference.Quota) *int64 { return &q.RequestsPerMinute }},
	{"tpm", "tokens_per_minute", func(q *inference.Quota) *int64 { return &q.TokensPerMinute }},
	{"concurrent", "concurrent", func(q *inference.Quota) *int64 { return &q.Concurrent }},
	{"tokens_per_day", "tokens_per_day", func(q *inference.Quota) *int64 { return &q.TokensPerDay }},
	{"tokens_per_month", "tokens_per_month", func(q *inference.Quota) *int64 { return &q.TokensPerMonth }},
}

// settings are the names of the further columns.
const settings = "id, models, expires, revoked, rps, rpm, tpm, concurrent, tokens_per_day and tokens_per_month"

// errTenant is what a name of a tenant must be.
var errTenant = fmt.Errorf("a tenant's name has at most %d bytes of printable characters and does not begin with #", maxTenant)

// parseKey reads the columns of a key. No error repeats a column: it may be a key that
// was written down by mistake.
func parseKey(fields []string) (k Key, err error) {
	if len(fields) < 3 {
		return k, fmt.Errorf("want 3 columns (sha256-of-the-key tenant class), got %d", len(fields))
	}
	if k.Digest, err = parseDigest(fields[0]); err != nil {
		return k, err
	}
	k.Tenant = fields[1]
	if !IsTenant(k.Tenant) {
		return k, errTenant
	}
	class, ok := inference.ParseClass(fields[2])
	if !ok {
		return k, errors.New("the third column must be a class: vip, normal or batch")
	}
	k.Class = class
	seen := make(map[string]bool)
	for i, column := range fields[3:] {
		name, value, ok := strings.Cut(column, "=")
		if !ok {
			return k, fmt.Errorf("column %d: want name=value; known are %s", i+4, settings)
		}
		if seen[name] {
			return k, fmt.Errorf("column %d: a setting is given twice", i+4)
		}
		seen[name] = true
		if err := k.set(name, value); err != nil {
			return k, fmt.Errorf("column %d: %w", i+4, err)
		}
	}
	if k.ID == "" {
		k.ID = k.Digest.ID()
	}
	return k, nil
}

// parseDigest reads the first column.
func parseDigest(text string) (d Digest, err error) {
	hexadecimal := text
	if rest, ok := strings.CutPrefix(text, "hmac:"); ok {
		d.Kind, hexadecimal = HMAC, rest
	} else if rest, ok := strings.CutPrefix(text, "sha256:"); ok {
		hexadecimal = rest
	}
	if len(hexadecimal) != hex.EncodedLen(len(d.Sum)) {
		return d, fmt.Errorf("the first column must be a SHA-256 in 64 hexadecimal digits, got %d characters", utf8.RuneCountInString(hexadecimal))
	}
	if _, err := hex.Decode(d.Sum[:], []byte(hexadecimal)); err != nil {
		return d, errors.New("the first column must be a SHA-256 in 64 hexadecimal digits, got other characters")
	}
	if d.Kind == SHA256 && d.Sum == sum("") {
		return d, errors.New("this is the SHA-256 of an empty key, which would let everybody in")
	}
	return d, nil
}

// parseTime reads when something ends. The zero time would mean that it never does.
func parseTime(text string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339, text)
	if err == nil && at.IsZero() {
		err = errors.New("year 1")
	}
	return at, err
}

// set reads one setting.
func (k *Key) set(name, value string) (err error) {
	switch name {
	case "id":
		k.ID = value
		if !isID(value) {
			return errID
		}
		return nil
	case "models":
		k.Models, err = ParseModels(value)
		return err
	case "expires":
		k.Expires, err = parseTime(value)
	case "revoked":
		k.Revoked, err = parseTime(value)
	default:
		for _, q := range quotas {
			if q.name != name {
				continue
			}
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil || n < 1 || n > maxQuota {
				return fmt.Errorf("%s must be a number of 1 to %d", name, int64(maxQuota))
			}
			*q.in(&k.Quota) = n
			return nil
		}
		return errors.New("unknown setting; known are " + settings)
	}
	if err != nil {
		return fmt.Errorf("%s must be a time such as 2027-01-01T00:00:00Z", name)
	}
	return nil
}

// ParseModels reads patterns between commas.
func ParseModels(text string) ([]string, error) {
	list := strings.Split(text, ",")
	return list, checkModels(list)
}

// checkModels judges patterns.
func checkModels(list []string) error {
	if len(list) > maxModels {
		return fmt.Errorf("models: at most %d patterns", maxModels)
	}
	for _, m := range list {
		if !IsPattern(m) || !isWord(m) || strings.Contains(m, ",") {
			return fmt.Errorf("models: want patterns between commas, such as llama-*,qwen-7b, of at most %d bytes each", maxPattern)
		}
	}
	return nil
}

// IsPattern says whether s may say which models are allowed (path.Match).
func IsPattern(s string) bool {
	_, err := path.Match(s, "")
	return err == nil && s != "" && len(s) <= maxPattern
}

// Check returns what is wrong with a key that is to be kept.
func (k *Key) Check() error {
	switch {
	case !isID(k.ID):
		return errID
	case !IsTenant(k.Tenant) || !isWord(k.Tenant):
		return fmt.Errorf("%w; a key's tenant is without spaces and #", errTenant)
	case k.Digest.Kind > HMAC:
		return errors.New("unknown kind of digest")
	case k.Digest.Kind == SHA256 && k.Digest.Sum == sum(""):
		return errors.New("this is the digest of an empty key")
	}
	if _, ok := inference.ParseClass(k.Class.String()); !ok {
		return errors.New("a class is vip, normal or batch")
	}
	for _, q := range quotas {
		if n := *q.in(&k.Quota); n < 0 || n > maxQuota {
			return fmt.Errorf("%s must be 0 to %d, got %d", q.name, int64(maxQuota), n)
		}
	}
	return checkModels(k.Models)
}

// Line is the key as a line of a keys file, without its end.
func (k *Key) Line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s id=%s", k.Digest.text(), k.Tenant, k.Class, k.ID)
	if k.Models != nil {
		b.WriteString(" models=" + strings.Join(k.Models, ","))
	}
	for _, q := range quotas {
		if n := *q.in(&k.Quota); n > 0 {
			fmt.Fprintf(&b, " %s=%d", q.name, n)
		}
	}
	for _, at := range k.times() {
		if !at.time.IsZero() {
			fmt.Fprintf(&b, " %s=%s", at.name, stamp(at.time))
		}
	}
	return b.String()
}

// moment is a time with its name.
type moment struct {
	name string
	time time.Time
}

// times are those that a command changes.
func (k *Key) times() []moment { return []moment{{"expires", k.Expires}, {"revoked", k.Revoked}} }

// stamp writes a time.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// errID is what an id must be.
var errID = fmt.Errorf("an id has 1 to %d letters, digits, dots, dashes and underscores", maxID)

// isID says whether s may name a key.
func isID(s string) bool {
	return s != "" && len(s) <= maxID && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	})
}

// IsTenant says whether s may name a tenant. Names that begin with # are Spillway's own,
// as the ledger's for what it asks by itself.
func IsTenant(s string) bool {
	return s != "" && s[0] != '#' && len(s) <= maxTenant && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// isWord says whether s can be one column.
func isWord(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) || r == '#' })
}
