package cache_test

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/cache/cachetest"
	"github.com/spillway/spillway/internal/inference"
)

// packings are what Encode is called with.
var packings = map[string]int{"plain": math.MaxInt, "packed": 0}

// text is a random text of any bytes.
func text(r *rand.Rand, n int) string {
	b := make([]byte, r.IntN(n+1))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// anyEntry is a random entry.
func anyEntry(r *rand.Rand) *cache.Entry {
	at := func() time.Time { return time.UnixMilli(r.Int64N(1 << 43)) }
	e := &cache.Entry{
		Scope: text(r, 20), Model: text(r, 20), Surface: inference.Surfaces()[r.IntN(len(inference.Surfaces()))], Question: text(r, 100),
		Stored: at(), Expires: at(), Stale: at(), Hits: r.Uint32(),
		Answer: &inference.Transcript{Usage: inference.Usage{
			PromptTokens: r.Int64(), CompletionTokens: r.Int64(), CachedTokens: r.Int64(), ReasoningTokens: r.Int64(),
		}},
	}
	for i := range e.Key {
		e.Key[i] = byte(r.Uint32())
	}
	for range r.IntN(4) {
		e.Answer.Fields = append(e.Answer.Fields, inference.HeaderField{Name: text(r, 10), Value: text(r, 30)})
	}
	if r.IntN(3) == 0 {
		e.Answer.Body = []byte(text(r, 5000))
		return e
	}
	e.Answer.Marks = []inference.Mark{}
	for range r.IntN(50) {
		cachetest.Event(e, time.Duration(r.Uint32())*time.Microsecond, text(r, 300))
		e.Answer.Marks[len(e.Answer.Marks)-1].Usage = r.IntN(5) == 0
	}
	return e
}

// encode is Encode for entries that can be encoded.
func encode(t testing.TB, e *cache.Entry, packFrom int) []byte {
	t.Helper()
	b, err := e.Encode(packFrom)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnyEntryComesBack(t *testing.T) {
	for name, packFrom := range packings {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(100) {
				e := anyEntry(rand.New(rand.NewPCG(seed, 0)))
				b := encode(t, e, packFrom)
				got, err := cache.Decode(e.Key, b)
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if d := cachetest.Diff(e, got); d != "" {
					t.Fatalf("seed %d (-want +got):\n%s", seed, d)
				}
				clear(b)
				if d := cachetest.Diff(e, got); d != "" {
					t.Fatalf("seed %d: the entry shares memory with its binary form:\n%s", seed, d)
				}
			}
		})
	}
}

func TestPackedWhereAsked(t *testing.T) {
	e := cachetest.OnePiece(cachetest.NewEntry("a", time.Now()), bytes.Repeat([]byte("again "), 1000))
	plain := encode(t, e, math.MaxInt)
	if n := len(encode(t, e, len(plain)+1)); n != len(plain) {
		t.Errorf("%d bytes below the bound are written as %d", len(plain), n)
	}
	if n := len(encode(t, e, 4<<10)); n > len(plain)/4 {
		t.Errorf("%d bytes that repeat themselves are packed to %d", len(plain), n)
	}
}

// wantCorrupt checks that b is refused, or is the very entry.
func wantCorrupt(t *testing.T, what string, e *cache.Entry, b []byte) {
	t.Helper()
	got, err := cache.Decode(e.Key, b)
	switch {
	case errors.Is(err, cache.ErrCorrupt) && got == nil:
	case err != nil || got == nil:
		t.Fatalf("%s: Decode = %v, %v, want nil, %v", what, got, err, cache.ErrCorrupt)
	case cachetest.Diff(e, got) != "":
		t.Fatalf("%s: Decode = another entry (-want +got):\n%s", what, cachetest.Diff(e, got))
	}
}

func TestDamageIsSeen(t *testing.T) {
	for name, packFrom := range packings {
		t.Run(name, func(t *testing.T) {
			e := cachetest.NewEntry("a", time.Now())
			b := encode(t, e, packFrom)
			for n := range b {
				wantCorrupt(t, fmt.Sprintf("cut to %d of %d bytes", n, len(b)), e, b[:n])
				wantCorrupt(t, fmt.Sprintf("without the first %d of %d bytes", n+1, len(b)), e, b[n+1:])
			}
			wantCorrupt(t, "with a byte more", e, append(bytes.Clone(b), 0))
			wantCorrupt(t, "twice", e, append(bytes.Clone(b), b...))
			bad := bytes.Clone(b)
			for i := range b {
				for _, flip := range []byte{1, 0x80, 0xff, byte(i) | 2} {
					bad[i] = b[i] ^ flip
					wantCorrupt(t, fmt.Sprintf("byte %d of %d xor %#x", i, len(b), flip), e, bad)
				}
				bad[i] = b[i]
			}
			for at := 0; at+8 <= len(b); at += 8 { // a torn page
				clear(bad[at : at+8])
				wantCorrupt(t, fmt.Sprintf("zeros at %d", at), e, bad)
				copy(bad, b)
			}
		})
	}
}

func TestAnotherKeysEntryIsRefused(t *testing.T) {
	for name, packFrom := range packings {
		a := cachetest.NewEntry("a", time.Now())
		if got, err := cache.Decode(cachetest.Key("b"), encode(t, a, packFrom)); !errors.Is(err, cache.ErrCorrupt) || got != nil {
			t.Errorf("%s: Decode under another key = %v, %v", name, got, err)
		}
	}
}

func TestEncodeRefusesWhatCannotComeBack(t *testing.T) {
	for name, change := range map[string]func(*inference.Transcript){
		"an event ends before it begins": func(t *inference.Transcript) { t.Marks[1].End = 0 },
		"events end before the body":     func(t *inference.Transcript) { t.Body = append(t.Body, "more"...) },
		"events end behind the body":     func(t *inference.Transcript) { t.Body = t.Body[:len(t.Body)-1] },
	} {
		t.Run(name, func(t *testing.T) {
			e := cachetest.NewEntry("a", time.Now())
			change(e.Answer)
			if b, err := e.Encode(math.MaxInt); err == nil {
				t.Errorf("Encode = %d bytes, want an error", len(b))
			}
		})
	}
}

// sealed is content with a head and a checksum that are right.
func sealed(key cache.Key, flags byte, content []byte) []byte {
	b := append([]byte("SPW1"), flags)
	b = append(append(b, key[:]...), content...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// deflated is what pack makes of n zeros, with any length in front.
func deflated(t testing.TB, says uint64, n int) []byte {
	t.Helper()
	out := bytes.NewBuffer(binary.AppendUvarint(nil, says))
	w, err := flate.NewWriter(out, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for ; n > 0; n -= len(zeros) {
		if _, err := w.Write(zeros[:min(n, len(zeros))]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// allocated is what do allocates, in bytes.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// facts are those of an entry without header fields, with their length.
func facts() []byte {
	const f = `{"surface":"chat"}`
	return append(binary.AppendUvarint(nil, uint64(len(f))), f...)
}

func TestGarbageDoesNotFillTheMemory(t *testing.T) {
	key := cachetest.Key("a")
	const most = 4 << 20 // what reading a packed entry of any size takes beside its content
	for name, b := range map[string][]byte{
		"a bomb":                          sealed(key, 1, deflated(t, 1<<30, 1<<20)),
		"a bomb that says it is small":    sealed(key, 1, deflated(t, 100, 1<<24)),
		"a length beyond the packed":      sealed(key, 1, deflated(t, 200<<20, 10)),
		"the greatest length":             sealed(key, 1, deflated(t, math.MaxUint64, 10)),
		"a length that is no number":      sealed(key, 1, bytes.Repeat([]byte{0xff}, 20)),
		"packed bytes that are none":      sealed(key, 1, append([]byte{10}, bytes.Repeat([]byte{0xff}, 20)...)),
		"something behind the packed":     sealed(key, 1, append(deflated(t, 10, 10), 0)),
		"no content":                      sealed(key, 0, nil),
		"no packed content":               sealed(key, 1, nil),
		"a flag that is not known":        sealed(key, 2, append(facts(), 0)),
		"more marks than bytes":           sealed(key, 0, binary.AppendUvarint(facts(), 1<<40)),
		"the greatest number of marks":    sealed(key, 0, binary.AppendUvarint(facts(), math.MaxUint64)),
		"facts beyond the end":            sealed(key, 0, binary.AppendUvarint(nil, 1<<40)),
		"facts that are no JSON":          sealed(key, 0, []byte{2, '{', '{', 0}),
		"facts of an unknown surface":     sealed(key, 0, append([]byte{2}, "{}\x00"...)),
		"a mark without its wait":         sealed(key, 0, append(facts(), 2, 1)),
		"a wait beyond its type":          sealed(key, 0, append(binary.AppendUvarint(append(facts(), 2, 0), 1<<40), 0)),
		"an event beyond the body":        sealed(key, 0, append(facts(), 2, 200, 1, 0, 'x')),
		"an event beyond what may be":     sealed(key, 0, append(binary.AppendUvarint(append(facts(), 2), 1<<60), 0)),
		"a body longer than its events":   sealed(key, 0, append(facts(), 2, 2, 0, 'x', 'y')),
		"text of another program":         []byte(strings.Repeat("garbage ", 100)),
		"nothing":                         nil,
		"the head alone":                  []byte("SPW1"),
		"an earlier version of the magic": append([]byte("SPW0"), sealed(key, 0, nil)[4:]...),
	} {
		t.Run(name, func(t *testing.T) {
			var e *cache.Entry
			var err error
			n := allocated(func() { e, err = cache.Decode(key, b) })
			if !errors.Is(err, cache.ErrCorrupt) || e != nil {
				t.Errorf("Decode = %v, %v, want nil, %v", e, err, cache.ErrCorrupt)
			}
			if n > most {
				t.Errorf("to refuse %d bytes takes %d bytes of memory, more than %d", len(b), n, most)
			}
		})
	}
}

func TestSizeFollowsTheMemory(t *testing.T) {
	small, large := cachetest.NewEntry("a", time.Now()), cachetest.NewEntry("a", time.Now())
	cachetest.OnePiece(large, make([]byte, 1<<20))
	if s, l := small.Size(), large.Size(); s < 400 || s > 4096 || l < 1<<20 || l > 1<<20+4096 {
		t.Errorf("Size = %d and %d, want some hundreds and a MiB more", s, l)
	}
	// An entry that was read back takes what it says, packed or not.
	for name, packFrom := range packings {
		b := encode(t, large, packFrom)
		var got *cache.Entry
		n := allocated(func() { got, _ = cache.Decode(large.Key, b) })
		if n > uint64(got.Size())+300_000 { // of the decompressor, which is soon free again
			t.Errorf("%s: an entry of %d bytes takes %d", name, got.Size(), n)
		}
	}
}

func FuzzDecode(f *testing.F) {
	now := time.UnixMilli(1_800_000_000_000)
	stream, piece := cachetest.NewEntry("a", now), cachetest.OnePiece(cachetest.NewEntry("b", now), []byte("{}"))
	for _, e := range []*cache.Entry{stream, piece} {
		for _, packFrom := range packings {
			b := encode(f, e, packFrom)
			f.Add(b[4], b[5+32:len(b)-4])
		}
	}
	f.Add(byte(1), deflated(f, 1<<20, 1<<20))
	f.Add(byte(0), []byte{})
	f.Fuzz(func(t *testing.T, flags byte, content []byte) {
		key := cachetest.Key("a")
		if e, err := cache.Decode(key, content); err == nil {
			t.Fatalf("Decode without a head = %+v", e)
		}
		e, err := cache.Decode(key, sealed(key, flags, content)) // what a checksum does not stop
		if err != nil {
			if !errors.Is(err, cache.ErrCorrupt) || e != nil {
				t.Fatalf("Decode = %v, %v", e, err)
			}
			return
		}
		if len(e.Answer.Body) > 1032*(len(content)+1) {
			t.Fatalf("%d bytes become %d", len(content), len(e.Answer.Body))
		}
		for name, packFrom := range packings {
			again, err := cache.Decode(key, encode(t, e, packFrom))
			if err != nil || cachetest.Diff(e, again) != "" {
				t.Fatalf("%s: what was read does not come back: %v\n%s", name, err, cachetest.Diff(e, again))
			}
		}
	})
}

// answerOf is an entry with a stream of n events, as a model gives it.
func answerOf(n int) *cache.Entry {
	e := cachetest.NewEntry("a", time.Now())
	for i := range n {
		cachetest.Event(e, 20*time.Millisecond, fmt.Sprintf(
			`data: {"id":"chatcmpl-12345","object":"chat.completion.chunk","created":1763640000,"model":"m","choices":[{"index":0,"delta":{"content":" word%d"},"finish_reason":null}]}`+"\n\n", i*7919%1000))
	}
	return e
}

func BenchmarkEncode(b *testing.B) {
	for _, events := range []int{1, 40, 200} {
		for name, packFrom := range packings {
			b.Run(fmt.Sprintf("events=%d/%s", events, name), func(b *testing.B) {
				e := answerOf(events)
				b.ReportAllocs()
				n := 0
				for b.Loop() {
					n = len(encode(b, e, packFrom))
				}
				b.ReportMetric(float64(n), "bytes")
			})
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, events := range []int{1, 40, 200} {
		for name, packFrom := range packings {
			b.Run(fmt.Sprintf("events=%d/%s", events, name), func(b *testing.B) {
				e := answerOf(events)
				coded := encode(b, e, packFrom)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := cache.Decode(e.Key, coded); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
