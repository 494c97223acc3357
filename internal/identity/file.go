package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Bounds of a keys file. A line is about 80 bytes, so the largest file holds
// some 200,000 keys.
const (
	maxFile     = 16 << 20
	maxMistakes = 100
)

// load reads a keys file. Mistakes begin with the configuration's key, the file
// and the line. They never contain more than the first 8 digits of a digest,
// and nothing at all of a column that is not what it should be: it may be a key
// that was written down by mistake. alone says that without a key in it nobody could
// send a request.
func load(path string, secret pepper, alone bool) ([]Key, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("keys_file: %w", err)
	}
	lines, mistakes := parse(data, secret.takes)
	if len(mistakes) == 0 && len(lines) == 0 && alone {
		mistakes = append(mistakes, mistake{1, errors.New("no key in it; nobody could send a request")})
	}
	if err := complain("keys_file: "+path, mistakes); err != nil {
		return nil, err
	}
	keys := make([]Key, len(lines))
	for i := range lines {
		keys[i] = lines[i].key
	}
	return keys, nil
}

// complain words mistakes, a line each.
func complain(where string, mistakes []mistake) error {
	var errs []error
	for i, m := range mistakes {
		if i == maxMistakes {
			errs = append(errs, fmt.Errorf("%s: %d more mistakes", where, len(mistakes)-i))
			break
		}
		errs = append(errs, fmt.Errorf("%s:%d: %w", where, m.line, m.err))
	}
	return errors.Join(errs...)
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

// line is a key with the bytes of the file that say it, without comment, white space
// and end.
type line struct {
	key        Key
	start, end int
}

// takes returns why a key cannot be used with the pepper.
func (p pepper) takes(k *Key) error {
	switch {
	case k.Digest.Kind != HMAC:
		return nil
	case p == nil:
		return errors.New("an hmac digest needs identity.pepper_file or identity.pepper_env")
	case k.Digest.Sum == newMACs(p).sum(""):
		return errors.New("this is the digest of an empty key, which would let everybody in")
	}
	return nil
}

// parse reads the lines of a keys file and finds every mistake, and what takes says
// of keys.
func parse(data []byte, takes func(*Key) error) (lines []line, mistakes []mistake) {
	digests, ids := make(map[Digest]int), make(map[string]int) // line of each
	n, at := 0, 0
	for whole := range bytes.Lines(data) {
		start := at
		at += len(whole)
		n++
		text := string(whole)
		if rest, ok := strings.CutPrefix(text, "\ufeff"); ok && n == 1 {
			text, start = rest, start+len("\ufeff")
		}
		text, _, _ = strings.Cut(text, "#")
		fields := strings.Fields(text)
		if len(fields) == 0 {
			continue
		}
		k, err := parseKey(fields)
		if err == nil {
			err = takes(&k)
		}
		switch {
		case err != nil:
		case digests[k.Digest] != 0:
			err = fmt.Errorf("the key %x... stands in line %d already", k.Digest.Sum[:4], digests[k.Digest])
		case ids[k.ID] != 0:
			err = fmt.Errorf("the id of line %d stands here once more", ids[k.ID])
		}
		if err != nil {
			mistakes = append(mistakes, mistake{n, err})
			continue
		}
		digests[k.Digest], ids[k.ID] = n, n
		start += strings.Index(text, fields[0])
		lines = append(lines, line{k, start, start + len(strings.TrimSpace(text))})
	}
	return lines, mistakes
}
