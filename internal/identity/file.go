package identity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"unicode"
	"unicode/utf8"

	"github.com/spillway/spillway/internal/inference"
)

// Bounds of a keys file. A line is about 80 bytes, so the largest file holds
// some 200,000 keys.
const (
	maxFile     = 16 << 20
	maxTenant   = 64 // bytes
	maxMistakes = 100
)

// Config is the section `identity` of the configuration.
type Config struct {
	// File with one API key per line: the SHA-256 of the key in hexadecimal, the tenant, the class (`vip`, `normal` or `batch`). Empty: no key is asked for, and everybody is `anonymous` and `normal`.
	KeysFile string `yaml:"keys_file"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config { return Config{} }

// Validate returns every mistake in the section, those of the keys file
// included.
func (c *Config) Validate() error {
	if c.KeysFile == "" {
		return nil
	}
	_, err := load(c.KeysFile)
	return err
}

// load reads a keys file. Mistakes begin with the configuration's key, the file
// and the line. They never contain more than the first 8 digits of a digest,
// and nothing at all of a column that is not what it should be: it may be a key
// that was written down by mistake.
func load(path string) (table, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("keys_file: %w", err)
	}
	t, mistakes := parse(data)
	if len(mistakes) == 0 && len(t) == 0 {
		mistakes = append(mistakes, mistake{1, errors.New("no key in it; nobody could send a request")})
	}
	var errs []error
	for i, m := range mistakes {
		if i == maxMistakes {
			errs = append(errs, fmt.Errorf("keys_file: %s: %d more mistakes", path, len(mistakes)-i))
			break
		}
		errs = append(errs, fmt.Errorf("keys_file: %s:%d: %w", path, m.line, m.err))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return t, nil
}

// readFile reads a file of bounded size.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d MiB", path, maxFile>>20)
	}
	return data, nil
}

// mistake is what is wrong with one line.
type mistake struct {
	line int
	err  error
}

// parse reads the lines of a keys file and finds every mistake.
func parse(data []byte) (table, []mistake) {
	t := make(table)
	first := make(map[digest]int) // line of each digest
	var mistakes []mistake
	n := 0
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\ufeff"))) {
		n++
		if i := bytes.IndexByte(line, '#'); i >= 0 {
			line = line[:i]
		}
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		d, o, err := parseLine(fields)
		if err == nil && first[d] != 0 {
			err = fmt.Errorf("the key %x... stands in line %d already", d[:4], first[d])
		}
		if err != nil {
			mistakes = append(mistakes, mistake{n, err})
			continue
		}
		first[d], t[d] = n, o
	}
	return t, mistakes
}

// parseLine reads one key's columns.
func parseLine(fields [][]byte) (d digest, o owner, err error) {
	if len(fields) != 3 {
		return d, o, fmt.Errorf("want 3 columns (sha256-of-the-key tenant class), got %d", len(fields))
	}
	if len(fields[0]) != hex.EncodedLen(len(d)) {
		return d, o, fmt.Errorf("the first column must be a SHA-256 in 64 hexadecimal digits, got %d characters", utf8.RuneCount(fields[0]))
	}
	if _, err := hex.Decode(d[:], fields[0]); err != nil {
		return d, o, errors.New("the first column must be a SHA-256 in 64 hexadecimal digits, got other characters")
	}
	if d == sum("") {
		return d, o, errors.New("this is the SHA-256 of an empty key, which would let everybody in")
	}
	o.tenant = string(fields[1])
	if len(o.tenant) > maxTenant || !utf8.ValidString(o.tenant) || bytes.ContainsFunc(fields[1], unprintable) {
		return d, o, fmt.Errorf("a tenant's name has at most %d bytes of printable characters", maxTenant)
	}
	class, ok := inference.ParseClass(string(fields[2]))
	if !ok {
		return d, o, errors.New("the third column must be a class: vip, normal or batch")
	}
	o.class = class
	return d, o, nil
}

// unprintable says whether r has no place in a name.
func unprintable(r rune) bool { return !unicode.IsPrint(r) }
