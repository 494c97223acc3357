package redis

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"sync/atomic"
)

// LargestValue bounds a value that a server may send, in bytes. Larger ones must not
// be written: the connection ends on which one comes back.
const LargestValue = 64 << 20

// Further bounds of what a server may send.
const (
	longestLine = 64 << 10 // of a header, a word or an error
	mostItems   = 64 << 10 // of a list
	deepest     = 16       // lists within lists
)

// errProtocol says that a server does not speak the protocol of Redis.
var errProtocol = errors.New("what came is not the protocol of Redis")

// checked is a connection on which only well-formed answers pass, of bounded size,
// and no more of them than there were commands. The library panics or reserves any
// amount of memory where a server, or what else answers in its place, sends others.
//
// Subscriptions are not among what passes, unless pushes says so: an unexpected one
// is a panic too.
type checked struct {
	net.Conn
	owed    atomic.Int64 // answers
	in, out frames
}

// check wraps a connection.
func check(c net.Conn, pushes bool) *checked {
	return &checked{
		Conn: c, in: frames{largest: LargestValue, items: mostItems, pushes: pushes},
		out: frames{largest: math.MaxInt64 / 2, items: math.MaxInt32},
	}
}

// Write counts the commands.
func (c *checked) Write(b []byte) (int, error) {
	n, err := c.out.feed(b)
	if err != nil {
		return 0, err
	}
	c.owed.Add(n)
	return c.Conn.Write(b)
}

// Read lets through what is well-formed.
func (c *checked) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	answers, bad := c.in.feed(b[:n])
	if bad != nil {
		return 0, bad
	}
	if c.owed.Add(-answers) < 0 {
		return 0, fmt.Errorf("%w: more answers than commands", errProtocol)
	}
	return n, err
}

// frames follows a stream of values in the protocol of Redis, versions 2 and 3,
// without those of unknown length, which no server sends.
type frames struct {
	largest int64 // bytes of a text
	items   int64 // of a list
	pushes  bool  // values that nobody asked for may come

	line []byte  // of a header that is not complete
	text int64   // bytes that are missing of a text and its line end
	open []int64 // items that are missing of each list, the outermost first
	push bool    // the value under way is one that nobody asked for
}

// feed takes the next bytes, and counts the values that end in them.
func (f *frames) feed(b []byte) (ended int64, err error) {
	for len(b) > 0 {
		if f.text > 0 {
			n, err := f.skip(b)
			if err != nil {
				return ended, err
			}
			if b = b[n:]; f.text == 0 {
				ended += f.end()
			}
			continue
		}
		i := bytes.IndexByte(b, '\n')
		line := b[:i+1]
		if i < 0 || len(f.line) > 0 {
			if i < 0 {
				line = b
			}
			f.line = append(f.line, line...)
			b, line = b[len(line):], f.line
		} else {
			b = b[i+1:]
		}
		if len(line) > longestLine {
			return ended, fmt.Errorf("%w: a line of more than %d bytes", errProtocol, longestLine)
		}
		if i < 0 {
			return ended, nil
		}
		n, err := f.header(line)
		if err != nil {
			return ended, err
		}
		ended += n
		f.line = f.line[:0]
	}
	return ended, nil
}

// skip passes over the bytes of a text, and checks the line end behind it.
func (f *frames) skip(b []byte) (int, error) {
	const crlf = "\r\n"
	n := min(int64(len(b)), max(0, f.text-int64(len(crlf))))
	f.text -= n
	for int(n) < len(b) && f.text > 0 {
		if b[n] != crlf[int64(len(crlf))-f.text] {
			return 0, fmt.Errorf("%w: no line end behind a text", errProtocol)
		}
		n++
		f.text--
	}
	return int(n), nil
}

// header reads a line that begins a value, and says whether a whole one ends with it.
func (f *frames) header(line []byte) (int64, error) {
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return 0, fmt.Errorf("%w: %.20q", errProtocol, line)
	}
	kind, rest := line[0], string(line[1:len(line)-2])
	switch kind {
	case '+', '-', ':', ',', '(':
		return f.end(), nil
	case '_', '#':
		if kind == '_' && rest != "" || kind == '#' && rest != "t" && rest != "f" {
			return 0, fmt.Errorf("%w: %.20q", errProtocol, line)
		}
		return f.end(), nil
	case '$', '!', '=':
		n, err := f.count(kind, rest, f.largest)
		if err != nil || n < 0 {
			return f.end(), err
		}
		f.text = n + 2
		return 0, nil
	case '>':
		if !f.pushes || len(f.open) > 0 {
			return 0, fmt.Errorf("%w: a message that nobody asked for", errProtocol)
		}
		f.push = true
	case '*', '%', '~':
	default:
		return 0, fmt.Errorf("%w: %.20q", errProtocol, line)
	}
	n, err := f.count(kind, rest, f.items)
	if err != nil || n <= 0 {
		return f.end(), err
	}
	if kind == '%' {
		n *= 2
	}
	if len(f.open) == deepest {
		return 0, fmt.Errorf("%w: lists within lists, %d deep", errProtocol, deepest)
	}
	f.open = append(f.open, n)
	return 0, nil
}

// count reads a length. -1 means nothing, where there can be nothing.
func (f *frames) count(kind byte, s string, most int64) (int64, error) {
	if s == "-1" && (kind == '$' || kind == '*') {
		return -1, nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || int64(n) > most {
		return 0, fmt.Errorf("%w: a length of %.20q, want at most %d", errProtocol, s, most)
	}
	return int64(n), nil
}

// end notes that a value has ended, and the lists that end with it. It is 1 when
// that is an answer.
func (f *frames) end() int64 {
	for last := len(f.open) - 1; last >= 0; last-- {
		if f.open[last]--; f.open[last] > 0 {
			return 0
		}
		f.open = f.open[:last]
	}
	if f.push {
		f.push = false
		return 0
	}
	return 1
}
