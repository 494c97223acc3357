package engine

import "github.com/cespare/xxhash/v2"

const (
	onsets = "bcdfghjklmnprstvwxyz" // 20
	vowels = "aeiou"
	codas  = "dklmnrstxz" // 10
)

// text is the answer to one prompt: an endless row of pseudo-words, of which a request takes as many as it asks for.
// Every token is one word of [TokenBytes] bytes, its leading space included, so that an answer sent back as part of
// the next prompt has as many tokens as it had before.
type text uint64

func newText(prompt []byte) text { return text(xxhash.Sum64(prompt)) }

// number is a well-mixed number for position i (the finaliser of SplitMix64).
func (t text) number(i int) uint64 {
	x := uint64(t) + uint64(i+1)*0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return x ^ x>>31
}

// append adds token i.
func (t text) append(dst []byte, i int) []byte {
	n := t.number(i)
	return append(dst, ' ', onsets[n%20], vowels[(n>>16)%5], codas[(n>>32)%10])
}

// appendRange adds tokens from (included) to to (not included).
func (t text) appendRange(dst []byte, from, to int) []byte {
	for i := from; i < to; i++ {
		dst = t.append(dst, i)
	}
	return dst
}

// Answer is what the engine answers, in its given length, to a chat of one message of a user: what a load generator
// checks an answer against.
func Answer(content []byte, tokens int) []byte {
	prompt := append(append([]byte("user\n"), content...), '\n')
	return newText(prompt).appendRange(nil, 0, tokens)
}

// length is the answer's natural length in tokens, for requests that name none: 16 to 271.
func (t text) length() int { return 16 + int(t.number(-1)%256) }
