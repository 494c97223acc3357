package cache

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Key names an answer: everything that may change it is hashed into it.
type Key [32]byte

// String is the key in hexadecimal, as logs, headers and stores show it.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// ParseKey reads what String wrote.
func ParseKey(s string) (Key, error) {
	var k Key
	if n, err := hex.Decode(k[:], []byte(s[:min(len(s), 2*len(k))])); err != nil || n != len(k) || len(s) != 2*len(k) {
		return Key{}, fmt.Errorf("a cache key has %d hexadecimal digits, got %q", 2*len(k), s)
	}
	return k, nil
}

// Entry is one kept answer. It is never changed once it is made.
type Entry struct {
	Key      Key
	Scope    string // whose answer it is: see ScopeOf
	Model    string // that gave it, by the name it is asked for upstream
	Surface  inference.Surface
	Question string    // the beginning of the last question, for people; not part of the key
	Stored   time.Time // when the answer was generated
	Expires  time.Time // until then it is fresh
	Stale    time.Time // until then it is kept for want of a better one
	Hits     uint32    // when it was written here
	Answer   *inference.Transcript
}

// entryCost is what an entry costs in memory beside its texts, in bytes: the two
// structs, the slices' headers and the level's own node.
const entryCost = 400

// markCost is the size of an inference.Mark in bytes.
const markCost = 12

// Size is the memory that an entry takes, in bytes.
func (e *Entry) Size() int {
	t := e.Answer
	n := entryCost + len(e.Scope) + len(e.Model) + len(e.Question) + cap(t.Body) + cap(t.Whole) + markCost*cap(t.Marks)
	for _, f := range t.Fields {
		n += 32 + len(f.Name) + len(f.Value)
	}
	return n
}

// The binary form of an entry, version 1: magic, a byte of flags, the key, then
// packed (deflated where the flag says so): the length of the facts as JSON, the
// facts, the number of marks plus one (0: not a stream), the marks, the body; at
// the end the CRC-32C of all before it. Lengths are unsigned varints.
const (
	magic      = "SPW1"
	headSize   = len(magic) + 1 + len(Key{})
	flagPacked = 1
	tailSize   = crc32.Size
)

// maxUnpacked bounds what a packed entry may become, so that garbage cannot fill
// the memory. It is above every max_answer.
const maxUnpacked = 256 << 20

// checksum is the CRC-32C of b.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// ErrCorrupt says that bytes are not an entry, or not the entry they should be.
var ErrCorrupt = errors.New("not a cache entry")

// facts are what an entry's binary form says beside its answer.
type facts struct {
	Scope    string                  `json:"scope"`
	Model    string                  `json:"model"`
	Surface  string                  `json:"surface"`
	Question string                  `json:"question,omitempty"`
	Stored   int64                   `json:"stored"` // Unix milliseconds, as the other instants
	Expires  int64                   `json:"expires"`
	Stale    int64                   `json:"stale"`
	Hits     uint32                  `json:"hits"`
	Usage    inference.Usage         `json:"usage"`
	Fields   []inference.HeaderField `json:"fields"`
}

// Encode returns the entry's binary form. From packFrom bytes on it is deflated.
// Answers put together from events are left out: they can be made again.
func (e *Entry) Encode(packFrom int) ([]byte, error) {
	about, err := json.Marshal(facts{
		Scope: e.Scope, Model: e.Model, Surface: e.Surface.String(), Question: e.Question,
		Stored: e.Stored.UnixMilli(), Expires: e.Expires.UnixMilli(), Stale: e.Stale.UnixMilli(), Hits: e.Hits,
		Usage: e.Answer.Usage, Fields: e.Answer.Fields,
	})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", e.Key, err)
	}
	t := e.Answer
	b := make([]byte, headSize, headSize+len(about)+len(t.Body)+8*len(t.Marks)+32)
	copy(b, magic)
	copy(b[len(magic)+1:], e.Key[:])
	b = binary.AppendUvarint(b, uint64(len(about)))
	b = append(b, about...)
	if t.Marks == nil {
		b = binary.AppendUvarint(b, 0)
	} else {
		b = binary.AppendUvarint(b, uint64(len(t.Marks))+1)
	}
	from := uint32(0)
	for _, m := range t.Marks {
		b = binary.AppendUvarint(b, uint64(m.End-from)<<1|uint64(bit(m.Usage)))
		b = binary.AppendUvarint(b, uint64(m.Wait))
		from = m.End
	}
	b = append(b, t.Body...)
	if len(b) >= packFrom {
		if b, err = pack(b); err != nil {
			return nil, fmt.Errorf("encode %s: %w", e.Key, err)
		}
	}
	return binary.LittleEndian.AppendUint32(b, checksum(b)), nil
}

// bit is 1 or 0.
func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// pack deflates what stands behind the head.
func pack(b []byte) ([]byte, error) {
	out := bytes.NewBuffer(append(make([]byte, 0, len(b)/4+headSize), b[:headSize]...))
	w, err := flate.NewWriter(out, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b[headSize:]); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	packed := out.Bytes()
	packed[len(magic)] |= flagPacked
	return packed, nil
}

// Decode reads the binary form of the entry with the given key. Bytes that are
// cut, changed, or of another key are ErrCorrupt. The entry shares nothing with b.
func Decode(key Key, b []byte) (*Entry, error) {
	if len(b) < headSize+tailSize || string(b[:len(magic)]) != magic || !bytes.Equal(b[len(magic)+1:headSize], key[:]) {
		return nil, ErrCorrupt
	}
	body, tail := b[:len(b)-tailSize], b[len(b)-tailSize:]
	if checksum(body) != binary.LittleEndian.Uint32(tail) {
		return nil, ErrCorrupt
	}
	packed := body[headSize:]
	if body[len(magic)]&flagPacked == 0 {
		return unpacked(key, bytes.Clone(packed))
	}
	r := flate.NewReader(bytes.NewReader(packed))
	plain, err := io.ReadAll(io.LimitReader(r, maxUnpacked+1))
	if err != nil || len(plain) > maxUnpacked {
		return nil, ErrCorrupt
	}
	return unpacked(key, slices.Clip(plain))
}

// unpacked reads what stands behind the head. The entry keeps b.
func unpacked(key Key, b []byte) (*Entry, error) {
	about, b, err := piece(b)
	if err != nil {
		return nil, err
	}
	var f facts
	if err := json.Unmarshal(about, &f); err != nil {
		return nil, ErrCorrupt
	}
	surface, ok := inference.ParseSurface(f.Surface)
	if !ok {
		return nil, ErrCorrupt
	}
	t := &inference.Transcript{Fields: f.Fields, Usage: f.Usage}
	if t.Marks, b, err = marks(b); err != nil {
		return nil, err
	}
	t.Body = slices.Clip(b)
	if n := len(t.Marks); n > 0 && int(t.Marks[n-1].End) != len(b) {
		return nil, ErrCorrupt
	}
	return &Entry{
		Key: key, Scope: f.Scope, Model: f.Model, Surface: surface, Question: f.Question,
		Stored: time.UnixMilli(f.Stored), Expires: time.UnixMilli(f.Expires), Stale: time.UnixMilli(f.Stale), Hits: f.Hits, Answer: t,
	}, nil
}

// piece cuts a text with its length in front.
func piece(b []byte) (text, rest []byte, err error) {
	n, at := binary.Uvarint(b)
	if at <= 0 || n > uint64(len(b)-at) {
		return nil, nil, ErrCorrupt
	}
	return b[at : at+int(n)], b[at+int(n):], nil
}

// marks reads the marks.
func marks(b []byte) (list []inference.Mark, rest []byte, err error) {
	n, at := binary.Uvarint(b)
	if at <= 0 || n > uint64(len(b))+1 {
		return nil, nil, ErrCorrupt
	}
	b = b[at:]
	if n == 0 {
		return nil, b, nil
	}
	list = make([]inference.Mark, 0, n-1)
	end := uint64(0)
	for range n - 1 {
		size, at := binary.Uvarint(b)
		if at <= 0 {
			return nil, nil, ErrCorrupt
		}
		wait, more := binary.Uvarint(b[at:])
		if more <= 0 || wait > 1<<32-1 || size>>1 > maxUnpacked {
			return nil, nil, ErrCorrupt
		}
		if end += size >> 1; end > maxUnpacked {
			return nil, nil, ErrCorrupt
		}
		list = append(list, inference.Mark{End: uint32(end), Wait: uint32(wait), Usage: size&1 == 1})
		b = b[at+more:]
	}
	return list, b, nil
}
