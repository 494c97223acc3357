package redis_test

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/store/redis"
)

// wire is a connection whose other side has said everything, in pieces.
type wire struct {
	net.Conn
	in    io.Reader
	piece int
}

func (w *wire) Read(b []byte) (int, error)  { return w.in.Read(b[:min(len(b), w.piece)]) }
func (w *wire) Write(b []byte) (int, error) { return len(b), nil }

// pass sends commands, and returns what comes through of the answers.
func pass(commands, answers string, piece int, pushes bool) (string, error) {
	c := redis.Check(&wire{in: strings.NewReader(answers), piece: piece}, pushes)
	for b := []byte(commands); len(b) > 0; {
		n, err := c.Write(b[:min(len(b), piece)])
		if err != nil {
			return "", err
		}
		b = b[n:]
	}
	got, err := io.ReadAll(c)
	return string(got), err
}

// three are three commands.
const three = "*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n*2\r\n$4\r\nECHO\r\n$9\r\n*1\r\n$1\r\na\r\n"

func TestWhatPasses(t *testing.T) {
	for name, tc := range map[string]struct {
		answers string
		pushes  bool
		refused bool
	}{
		"nothing yet":               {answers: ""},
		"words":                     {answers: "+OK\r\n-ERR no\r\n:12\r\n"},
		"texts":                     {answers: "$5\r\nhe\r\no\r\n$0\r\n\r\n$-1\r\n"},
		"half a text":               {answers: "$5\r\nhe"},
		"half a line":               {answers: "+O"},
		"lists":                     {answers: "*2\r\n$1\r\na\r\n*1\r\n:1\r\n*0\r\n*-1\r\n"},
		"version 3":                 {answers: "%2\r\n+a\r\n:1\r\n+b\r\n~2\r\n#t\r\n_\r\n,1.5\r\n=5\r\ntxt:a\r\n"},
		"version 3, more":           {answers: "!3\r\nERR\r\n(123456789012345678901\r\n%0\r\n"},
		"one answer too many":       {answers: "+OK\r\n+OK\r\n+OK\r\n+OK\r\n", refused: true},
		"the fourth in a text":      {answers: "$4\r\n+a\r\n\r\n+OK\r\n+OK\r\n"},
		"a push":                    {answers: ">2\r\n+a\r\n+b\r\n", refused: true},
		"a push that may come":      {answers: ">2\r\n+a\r\n*1\r\n:1\r\n+OK\r\n+OK\r\n>1\r\n+x\r\n+OK\r\n", pushes: true},
		"a push within a list":      {answers: "*1\r\n>1\r\n+a\r\n", pushes: true, refused: true},
		"attributes":                {answers: "|1\r\n+a\r\n+b\r\n+OK\r\n", refused: true},
		"unknown":                   {answers: "@1\r\n", refused: true},
		"http":                      {answers: "HTTP/1.1 200 OK\r\n", refused: true},
		"zeros":                     {answers: strings.Repeat("\x00", 10) + "\n", refused: true},
		"no carriage return":        {answers: "+OK\n", refused: true},
		"an empty line":             {answers: "\r\n", refused: true},
		"a text without its end":    {answers: "$2\r\nabcd", refused: true},
		"a text with half its end":  {answers: "$2\r\nab\rx", refused: true},
		"a length below zero":       {answers: "$-2\r\n", refused: true},
		"a map of nothing":          {answers: "%-1\r\n", refused: true},
		"a set of nothing":          {answers: "~-1\r\n", refused: true},
		"a length of no number":     {answers: "$1x\r\n", refused: true},
		"a length with a sign":      {answers: "$+1\r\n", refused: true},
		"no length":                 {answers: "$\r\n", refused: true},
		"an unknown length":         {answers: "$?\r\n", refused: true},
		"the greatest text":         {answers: "$67108864\r\n"},
		"a text beyond that":        {answers: "$67108865\r\n", refused: true},
		"a length beyond a number":  {answers: "$99999999999999999999\r\n", refused: true},
		"a list too long":           {answers: "*65537\r\n", refused: true},
		"lists of lists":            {answers: strings.Repeat("*1\r\n", 16) + ":1\r\n"},
		"lists of lists of lists":   {answers: strings.Repeat("*1\r\n", 17), refused: true},
		"null with a text":          {answers: "_x\r\n", refused: true},
		"a truth that is none":      {answers: "#x\r\n", refused: true},
		"a line without end":        {answers: "+" + strings.Repeat("x", 70_000), refused: true},
		"an error, then a bad line": {answers: "-ERR no\r\n$x\r\n", refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, piece := range []int{1, 3, 7, 1 << 20} {
				got, err := pass(three, tc.answers, piece, tc.pushes)
				if (err != nil) != tc.refused {
					t.Fatalf("in pieces of %d: %v, want refused: %v", piece, err, tc.refused)
				}
				if !strings.HasPrefix(tc.answers, got) || err == nil && got != tc.answers {
					t.Errorf("in pieces of %d: %q passes", piece, got)
				}
			}
		})
	}
}

func TestAnswersAreOwed(t *testing.T) {
	for commands, most := range map[string]int{"": 0, "*1\r\n$4\r\nPIN": 0, "*1\r\n$4\r\nPING\r\n": 1, three: 3} {
		for n := range 5 {
			if _, err := pass(commands, strings.Repeat("+OK\r\n", n), 5, false); (err == nil) != (n <= most) {
				t.Errorf("%d answers to %q: %v", n, commands, err)
			}
		}
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte("+OK\r\n$3\r\nabc\r\n*1\r\n:1\r\n"), 3)
	f.Add([]byte("%1\r\n_\r\n#t\r\n~0\r\n$-1\r\n"), 1)
	f.Add([]byte("$0\r\n\r\n*-1\r\n>1\r\n+a\r\n"), 2)
	f.Fuzz(func(t *testing.T, answers []byte, piece int) {
		if piece < 1 {
			piece = 1
		}
		for _, pushes := range []bool{true, false} {
			_, whole := pass(three, string(answers), len(answers)+1, pushes)
			got, err := pass(three, string(answers), piece, pushes)
			if (whole == nil) != (err == nil) {
				t.Fatalf("in one piece %v, in pieces of %d %v", whole, piece, err)
			}
			if !bytes.HasPrefix(answers, []byte(got)) {
				t.Fatalf("%q comes through as %q", answers, got)
			}
		}
	})
}
