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
	"sync"
	"sync/atomic"
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

	asked *atomic.Uint32 // hits that were counted here, over all copies of the entry
}

// NewEntry returns an entry whose hits are counted from e.Hits on.
func NewEntry(e Entry) *Entry {
	e.asked = new(atomic.Uint32)
	e.asked.Store(e.Hits)
	return &e
}

// Newer says whether the entry was stored later than another, in the milliseconds that
// the binary form keeps.
func (e *Entry) Newer(than *Entry) bool { return e.Stored.UnixMilli() > than.Stored.UnixMilli() }

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

// The binary form of an entry, version 1: magic, a byte of flags, the key, then the
// content: the length of the facts as JSON, the facts, the number of marks plus one
// (0: not a stream), the marks, the body; at the end the CRC-32C of all before it.
// Where the flag says so, the content is deflated and its length stands before it.
// Lengths are unsigned varints.
const (
	magic      = "SPW1"
	headSize   = len(magic) + 1 + len(Key{})
	flagPacked = 1
	tailSize   = crc32.Size
)

// maxUnpacked bounds the content in bytes, so that garbage cannot fill the memory.
// It is above every max_answer.
const maxUnpacked = 256 << 20

// leastMark is the size of the shortest mark in the binary form, in bytes.
const leastMark = 2

// maxRatio is above the most that deflate packs into a byte: 258 bytes in two bits
// (RFC 1951 section 3.2.5).
const maxRatio = 1032

// checksum is the CRC-32C of b.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// ErrCorrupt says that bytes are not an entry, or not the entry they should be.
var ErrCorrupt = errors.New("not a cache entry")

// facts are what an entry's binary form says beside its answer. Texts are bytes
// (base64 in JSON): as strings, JSON would change what is not valid UTF-8, such as
// the value of a header field or a question that is cut within a character.
type facts struct {
	Scope    []byte          `json:"scope"`
	Model    []byte          `json:"model"`
	Surface  string          `json:"surface"`
	Question []byte          `json:"question,omitempty"`
	Stored   int64           `json:"stored"` // Unix milliseconds, as the other instants
	Expires  int64           `json:"expires"`
	Stale    int64           `json:"stale"`
	Hits     uint32          `json:"hits"`
	Usage    inference.Usage `json:"usage"`
	Fields   [][2][]byte     `json:"fields"` // names and values
}

// Encode returns the entry's binary form. From packFrom bytes on it is deflated.
// Answers put together from events are left out: they can be made again.
func (e *Entry) Encode(packFrom int) ([]byte, error) {
	t := e.Answer
	f := facts{
		Scope: []byte(e.Scope), Model: []byte(e.Model), Surface: e.Surface.String(), Question: []byte(e.Question),
		Stored: e.Stored.UnixMilli(), Expires: e.Expires.UnixMilli(), Stale: e.Stale.UnixMilli(), Hits: e.Hits, Usage: t.Usage,
	}
	for _, field := range t.Fields {
		f.Fields = append(f.Fields, [2][]byte{[]byte(field.Name), []byte(field.Value)})
	}
	about, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", e.Key, err)
	}
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
		if m.End < from {
			return nil, fmt.Errorf("encode %s: an event ends at %d, before its begin at %d", e.Key, m.End, from)
		}
		b = binary.AppendUvarint(b, uint64(m.End-from)<<1|uint64(bit(m.Usage)))
		b = binary.AppendUvarint(b, uint64(m.Wait))
		from = m.End
	}
	if len(t.Marks) > 0 && int(from) != len(t.Body) {
		return nil, fmt.Errorf("encode %s: the last event ends at %d of %d bytes", e.Key, from, len(t.Body))
	}
	b = append(b, t.Body...)
	if len(b)-headSize > maxUnpacked {
		return nil, fmt.Errorf("encode %s: %d bytes, more than %d", e.Key, len(b)-headSize, maxUnpacked)
	}
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

// packers (*flate.Writer) and inflaters (io.Reader that is a flate.Resetter) are at rest: a new one
// takes 1.2 MB to pack and 40 KB to unpack, and longer to make than to use.
var (
	packers   = sync.Pool{}
	inflaters = sync.Pool{New: func() any { return flate.NewReader(bytes.NewReader(nil)) }}
)

// pack deflates what stands behind the head.
func pack(b []byte) ([]byte, error) {
	head := append(make([]byte, 0, len(b)/4+headSize+binary.MaxVarintLen64), b[:headSize]...)
	out := bytes.NewBuffer(binary.AppendUvarint(head, uint64(len(b)-headSize)))
	w, ok := packers.Get().(*flate.Writer)
	if !ok {
		var err error
		if w, err = flate.NewWriter(out, flate.BestSpeed); err != nil {
			return nil, err
		}
	}
	defer packers.Put(w)
	w.Reset(out)
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
	content := body[headSize:]
	switch body[len(magic)] {
	case 0:
		return unpacked(key, bytes.Clone(content))
	case flagPacked:
		plain, err := inflate(content)
		if err != nil {
			return nil, err
		}
		return unpacked(key, plain)
	}
	return nil, ErrCorrupt
}

// inflate undoes pack. It allocates what the content's length says, after that
// is found possible.
func inflate(b []byte) ([]byte, error) {
	size, at := binary.Uvarint(b)
	if at <= 0 || size > maxUnpacked || size > maxRatio*uint64(len(b)) {
		return nil, ErrCorrupt
	}
	plain, in := make([]byte, size), bytes.NewReader(b[at:])
	r := inflaters.Get().(io.Reader)
	defer inflaters.Put(r)
	if err := r.(flate.Resetter).Reset(in, nil); err != nil {
		return nil, ErrCorrupt
	}
	if _, err := io.ReadFull(r, plain); err != nil {
		return nil, ErrCorrupt
	}
	if n, err := r.Read(make([]byte, 1)); n > 0 || err != io.EOF || in.Len() > 0 {
		return nil, ErrCorrupt
	}
	return plain, nil
}

// unpacked reads the content. The entry keeps b.
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
	t := &inference.Transcript{Usage: f.Usage}
	for _, field := range f.Fields {
		t.Fields = append(t.Fields, inference.HeaderField{Name: string(field[0]), Value: string(field[1])})
	}
	if t.Marks, b, err = marks(b); err != nil {
		return nil, err
	}
	t.Body = slices.Clip(b)
	if n := len(t.Marks); n > 0 && int(t.Marks[n-1].End) != len(b) {
		return nil, ErrCorrupt
	}
	return NewEntry(Entry{
		Key: key, Scope: string(f.Scope), Model: string(f.Model), Surface: surface, Question: string(f.Question),
		Stored: time.UnixMilli(f.Stored), Expires: time.UnixMilli(f.Expires), Stale: time.UnixMilli(f.Stale), Hits: f.Hits, Answer: t,
	}), nil
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
	if at <= 0 || n > uint64(len(b)/leastMark)+1 {
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
