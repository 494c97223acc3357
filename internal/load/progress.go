package load

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// Status is one look at a running load.
type Status struct {
	// Name is the target's name.
	Name string
	// Elapsed counts from the start; Total is the planned length, 0 when unknown.
	Elapsed, Total time.Duration
	// Offered, Answered, Failed and InFlight count rows.
	Offered, Answered, Failed, InFlight int64
	// TokensPerS is the rate of deltas since the last look.
	TokensPerS float64
}

// Progress shows a running load. Its methods are called from one goroutine.
type Progress interface {
	// Every is the time between two looks, > 0.
	Every() time.Duration
	// Show shows one look.
	Show(Status)
	// Done ends the show of one run.
	Done()
}

// NewProgress returns a bar when f is a terminal, else plain lines.
func NewProgress(f *os.File) Progress {
	if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		return NewBar(f)
	}
	return NewLines(f)
}

// NewLines writes a line every 5 seconds. Errors of w are ignored: progress
// is not the result.
func NewLines(w io.Writer) Progress { return lines{w} }

type lines struct{ w io.Writer }

// Every implements Progress.
func (lines) Every() time.Duration { return 5 * time.Second }

// Show implements Progress.
func (l lines) Show(s Status) { fmt.Fprintln(l.w, s) }

// Done implements Progress.
func (lines) Done() {}

// String is the status in words.
func (s Status) String() string {
	of := ""
	if s.Total > 0 {
		of = "/" + s.Total.Round(time.Second).String()
	}
	return fmt.Sprintf("%s %s%s offered %d answered %d failed %d in flight %d tokens/s %.0f",
		s.Name, s.Elapsed.Round(time.Second), of, s.Offered, s.Answered, s.Failed, s.InFlight, s.TokensPerS)
}

// barWidth is the bar's own width; the line stays under 120 columns.
const barWidth = 20

// NewBar redraws one line with a bar four times a second.
func NewBar(w io.Writer) Progress { return &bar{w: w} }

type bar struct {
	w    io.Writer
	last int // width of the line on the screen
}

// Every implements Progress.
func (*bar) Every() time.Duration { return 250 * time.Millisecond }

// Show implements Progress.
func (b *bar) Show(s Status) {
	line := s.String()
	if s.Total > 0 {
		full := int(barWidth * min(1, s.Elapsed.Seconds()/s.Total.Seconds()))
		line = "[" + strings.Repeat("#", full) + strings.Repeat(".", barWidth-full) + "] " + line
	}
	// A shorter line than the last one has to blank its rest.
	fmt.Fprintf(b.w, "\r%-*s", b.last, line)
	b.last = len(line)
}

// Done implements Progress.
func (b *bar) Done() {
	if b.last > 0 {
		fmt.Fprintln(b.w)
		b.last = 0
	}
}
