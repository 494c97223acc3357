package bench

import (
	"time"

	"github.com/spillway/spillway/internal/engine"
)

// Server is one instance as the optimum sees it.
type Server struct {
	// Batching is its law at speed 1.
	Batching engine.Batching
	// Speed divides every duration of the law: 2 is twice as fast. 0 means 1.
	Speed float64
}

// Lengths are the true lengths of one request in tokens.
type Lengths struct{ Prompt, Output int }

// Optimum bounds what a fleet can serve of a mix of requests when nobody knows
// their lengths beforehand. All rates are seconds of work per second (see
// [Work]), so that serving many short requests instead of few long ones gains
// nothing.
//
// A step of an engine at speed 1 takes T = T0 + TD*batch + TP*prefill, of which
// all but T0 is work, so a server of speed s that always steps in T does
// s*(1 - T0/T) work per second. The function is concave, so by Jensen's
// inequality steps of unequal length do not do more than their mean. The mean is
// bounded three times:
//
//   - ITL: requests that keep a time per output token of tau need T <= s*tau;
//   - sequences: a batch of B requests makes B tokens and, on average,
//     prefills B*E[in]/E[out], so T = T0 + B*E[w]/E[out] with B <= max_seqs;
//   - KV: a running request holds in + out/2 tokens on average, long ones for
//     longer, so B <= K*E[out] / E[out*(in + out/2)].
//
// The fleet's optimum sums, over its servers, the work at the least of the
// three. What it leaves out only makes it larger: the chunk limit on prefill,
// the extra share of a prompt in several chunks, deadlines. Two things can lift
// a system above it: prompts that share a cached prefix, since their work is
// counted in full, and answers of fewer than 16 tokens, whose gaps are judged
// over 15 ([Terms]).
type Optimum struct {
	// Work is the bound in seconds of work per second, Rate the same in
	// requests of the mean length per second.
	Work, Rate float64
	// MeanWork is the mean work of a request in seconds.
	MeanWork float64
	// ITL, Sequences and KV are the bounds that each constraint alone would
	// give. The fleet's Work is no larger than any of them.
	ITL, Sequences, KV float64
	// Prefill is the bound that the chunk limit would give. Work leaves it out.
	Prefill float64
}

// Work is what a request costs an engine of speed 1, in seconds: its marginal
// time in the steps that it takes part in.
func Work(law engine.Batching, l Lengths) float64 {
	return (time.Duration(l.Output)*law.StepPerSeq + time.Duration(l.Prompt)*law.StepPerPromptToken).Seconds()
}

// means are the averages that the bounds need of a mix.
type means struct {
	prompt, output float64 // tokens
	held           float64 // E[out*(in + out/2)], tokens squared
}

func meansOf(lengths []Lengths) means {
	var m means
	for _, l := range lengths {
		in, out := float64(l.Prompt), float64(l.Output)
		m.prompt += in
		m.output += out
		m.held += out * (in + out/2)
	}
	n := float64(max(1, len(lengths)))
	return means{m.prompt / n, m.output / n, m.held / n}
}

// work is the mean work of a request under a law, in seconds.
func (m means) work(law engine.Batching) float64 {
	return m.output*law.StepPerSeq.Seconds() + m.prompt*law.StepPerPromptToken.Seconds()
}

// NewOptimum bounds what the fleet can serve of requests with these lengths
// whose time per output token must be at most tpot. Work is measured by the
// first server's law. Without servers, or without any output, it is zero.
func NewOptimum(fleet []Server, tpot time.Duration, lengths []Lengths) Optimum {
	var o Optimum
	m := meansOf(lengths)
	if len(fleet) == 0 || m.output == 0 {
		return o
	}
	o.MeanWork = m.work(fleet[0].Batching)
	for _, s := range fleet {
		own := m.work(s.Batching)
		if own == 0 {
			continue
		}
		unit := o.MeanWork / own // of the first server's work in this one's
		itl, seqs, kv, prefill := s.steps(tpot, m)
		o.ITL += unit * s.at(itl)
		o.Sequences += unit * s.at(seqs)
		o.KV += unit * s.at(kv)
		o.Prefill += unit * s.at(prefill)
		o.Work += unit * s.at(min(itl, seqs, kv))
	}
	if o.MeanWork > 0 {
		o.Rate = o.Work / o.MeanWork
	}
	return o
}

// speed is the server's speed, 1 unless it is set.
func (s Server) speed() float64 {
	if s.Speed > 0 {
		return s.Speed
	}
	return 1
}

// steps are the longest mean steps that each constraint allows, in seconds at
// speed 1.
func (s Server) steps(tpot time.Duration, m means) (itl, seqs, kv, prefill float64) {
	law := s.Batching
	per := m.work(law) / m.output // work that comes with one sequence of the batch
	base := law.StepBase.Seconds()
	itl = s.speed() * tpot.Seconds()
	seqs = base + float64(law.MaxSeqs)*per
	kv = base + float64(law.KVTokens)*m.output/m.held*per
	prefill = itl
	if m.prompt > 0 {
		prefill = base + float64(law.Chunk)*m.output/m.prompt*per
	}
	return itl, seqs, kv, prefill
}

// at is the work per second in steps of the given length.
func (s Server) at(step float64) float64 {
	if step <= 0 {
		return 0
	}
	return s.speed() * max(0, 1-s.Batching.StepBase.Seconds()/step)
}

// Serves says whether the server, with nothing else to do, could serve a request
// within these bounds: its first token comes after one step per chunk of its
// prompt. A bound of 0 is none.
func (s Server) Serves(l Lengths, ttft, tpot time.Duration) bool {
	law := s.Batching
	if l.Prompt+l.Output > law.KVTokens {
		return false
	}
	chunks := (l.Prompt + law.Chunk - 1) / law.Chunk
	step := law.StepBase + law.StepPerSeq
	first := time.Duration(chunks)*step + time.Duration(l.Prompt)*law.StepPerPromptToken
	if ttft > 0 && float64(first) > s.speed()*float64(ttft) {
		return false
	}
	return tpot <= 0 || float64(perToken(time.Duration(l.Output-1)*step, l.Output)) <= s.speed()*float64(tpot)
}

// judgedGaps is the least number of gaps that a time per output token is judged
// over: a short answer is not late because of one slow step.
const judgedGaps = 15

// perToken is the time per output token of an answer of n tokens whose first and
// last token are d apart.
func perToken(d time.Duration, n int) time.Duration {
	return d / time.Duration(max(n-1, judgedGaps))
}
