package load

import (
	"cmp"
	"container/heap"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strconv"
	"time"
)

// Window lengths of ServeGen's files.
const (
	serveGenRateWindow   = 600 * time.Second
	serveGenLengthWindow = 21600 * time.Second
)

// Bounds against broken or hostile files.
const (
	maxServeGenWindows = 1 << 20
	maxServeGenValues  = 1 << 22
	maxWindowArrivals  = 1 << 22
)

// ServeGenLaw is what ServeGen measured: arrival laws per client and window of
// 600 s and length distributions per client and window of 6 h. It is immutable
// and safe for concurrent use.
type ServeGenLaw struct {
	clients []int
	rates   map[int][]rateWindow
	lengths map[int][]lengthWindow
}

// rateWindow is the fitted law of the gaps of one client in one window.
type rateWindow struct {
	start   time.Duration
	rate    float64 // requests/s
	weibull bool    // else gamma
	shape   float64
}

// lengthWindow holds the token lengths of one client in one window.
type lengthWindow struct {
	start         time.Duration
	input, output weighted
}

// weighted draws a value by its probability.
type weighted struct {
	values []int32
	sums   []float64 // cumulative
}

func (w weighted) draw(r *rand.Rand) int {
	if len(w.values) == 0 {
		return 1
	}
	x := r.Float64() * w.sums[len(w.sums)-1]
	return int(w.values[min(sort.SearchFloat64s(w.sums, x), len(w.values)-1)])
}

// NewServeGen reads the rates (CSV) and the lengths (JSON lines), plain or gzip.
func NewServeGen(rates, lengths io.Reader) (*ServeGenLaw, error) {
	law := &ServeGenLaw{rates: map[int][]rateWindow{}, lengths: map[int][]lengthWindow{}}
	if err := law.readRates(rates); err != nil {
		return nil, fmt.Errorf("rates: %w", err)
	}
	if err := law.readLengths(lengths); err != nil {
		return nil, fmt.Errorf("lengths: %w", err)
	}
	for client, ws := range law.rates {
		if len(law.lengths[client]) == 0 {
			return nil, fmt.Errorf("lengths: client %d has none", client)
		}
		slices.SortFunc(ws, func(a, b rateWindow) int { return cmp.Compare(a.start, b.start) })
		law.clients = append(law.clients, client)
	}
	if len(law.clients) == 0 {
		return nil, errors.New("rates: no windows")
	}
	slices.Sort(law.clients)
	return law, nil
}

func (l *ServeGenLaw) readRates(r io.Reader) error {
	src, err := plain(r)
	if err != nil {
		return err
	}
	c := csv.NewReader(src)
	c.ReuseRecord = true
	c.FieldsPerRecord = 7
	for n := 0; ; n++ {
		rec, err := c.Read()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if n == 0 {
			continue // the header
		}
		client, w, err := parseRate600(rec)
		if err != nil {
			return fmt.Errorf("row %d: %w", n, err)
		}
		if n > maxServeGenWindows {
			return fmt.Errorf("more than %d windows", maxServeGenWindows)
		}
		l.rates[client] = append(l.rates[client], w)
	}
}

// parseRate600 reads client_id,window_start_s,rate_rps,cv,pattern,param1,param2.
func parseRate600(rec []string) (int, rateWindow, error) {
	client, err := strconv.Atoi(rec[0])
	if err != nil {
		return 0, rateWindow{}, err
	}
	var f [3]float64
	for i, col := range []int{1, 2, 5} {
		if f[i], err = strconv.ParseFloat(rec[col], 64); err != nil {
			return 0, rateWindow{}, err
		}
	}
	w := rateWindow{rate: f[1], shape: f[2], weibull: rec[4] == "Weibull"}
	if w.start, err = seconds(f[0]); err != nil {
		return 0, rateWindow{}, err
	}
	if !w.weibull && rec[4] != "Gamma" {
		return 0, rateWindow{}, fmt.Errorf("unknown pattern %q", label(rec[4]))
	}
	if !(w.rate >= 0 && w.rate <= maxRate && w.shape > 1e-3 && w.shape < 1e6) {
		return 0, rateWindow{}, errRange
	}
	return client, w, nil
}

func (l *ServeGenLaw) readLengths(r io.Reader) error {
	src, err := plain(r)
	if err != nil {
		return err
	}
	s := scanLines(src)
	values := 0
	for n := 1; s.Scan(); n++ {
		var v struct {
			Client int                `json:"client_id"`
			Start  float64            `json:"window_start_s"`
			Input  map[string]float64 `json:"input_tokens"`
			Output map[string]float64 `json:"output_tokens"`
		}
		if err := json.Unmarshal(s.Bytes(), &v); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if values += len(v.Input) + len(v.Output); values > maxServeGenValues {
			return fmt.Errorf("more than %d values", maxServeGenValues)
		}
		var w lengthWindow
		var errs [3]error
		w.start, errs[0] = seconds(v.Start)
		w.input, errs[1] = newWeighted(v.Input)
		w.output, errs[2] = newWeighted(v.Output)
		if err := errors.Join(errs[:]...); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		l.lengths[v.Client] = append(l.lengths[v.Client], w)
	}
	return s.Err()
}

// newWeighted sorts a map value -> probability, so that draws do not depend on
// the map's order.
func newWeighted(m map[string]float64) (weighted, error) {
	type pair struct {
		value int
		p     float64
	}
	pairs := make([]pair, 0, len(m))
	for text, p := range m {
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return weighted{}, err
		}
		if !(v >= 0 && v <= maxTokens && p >= 0 && p <= 1) {
			return weighted{}, errRange
		}
		if p > 0 {
			pairs = append(pairs, pair{int(v), p})
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int { return cmp.Compare(a.value, b.value) })
	var w weighted
	sum := 0.0
	for _, p := range pairs {
		sum += p.p
		w.values = append(w.values, int32(p.value))
		w.sums = append(w.sums, sum)
	}
	return w, nil
}

// lengthsAt returns the client's window at an instant, or its nearest earlier
// one, or its first: not every client has all four.
func (l *ServeGenLaw) lengthsAt(client int, at time.Duration) lengthWindow {
	ws := l.lengths[client]
	best := ws[0]
	for _, w := range ws {
		if w.start <= at && w.start >= best.start {
			best = w
		}
	}
	return best
}

// Rows draws the requests of one pass: rate scale multiplies every rate, seed
// fixes the draw.
//
// In each window a client sends rate x 600 s requests (the fraction rounded by
// a draw). Their gaps have the fitted shape and are scaled together to fill
// the window, because the fitted scale describes the gaps between requests
// that happened and would, for bursty clients, miss the measured rate by a
// factor of up to seven. Input and output lengths are drawn independently: the
// source publishes no joint law.
func (l *ServeGenLaw) Rows(seed uint64, rateScale float64) Rows {
	g := &serveGenRows{law: l}
	for i, client := range l.clients {
		c := &serveGenClient{
			client: client, label: "client-" + strconv.Itoa(client), seed: mix(seed, uint64(i)),
			windows: l.rates[client], scale: rateScale,
		}
		c.lengths = rand.New(rand.NewPCG(c.seed, 0))
		if c.advance() {
			g.queue = append(g.queue, c)
		}
	}
	heap.Init(&g.queue)
	return g
}

// serveGenRows merges the clients' arrivals.
type serveGenRows struct {
	law   *ServeGenLaw
	queue serveGenQueue
}

// Next implements Rows.
func (g *serveGenRows) Next() (Row, error) {
	if len(g.queue) == 0 {
		return Row{}, io.EOF
	}
	c := g.queue[0]
	w := g.law.lengthsAt(c.client, c.at)
	row := Row{At: c.at, Client: c.label, Input: w.input.draw(c.lengths), Output: w.output.draw(c.lengths)}
	if c.advance() {
		heap.Fix(&g.queue, 0)
	} else {
		heap.Pop(&g.queue)
	}
	return row.sane()
}

// serveGenClient draws the arrivals of one client in order. Gaps of a window
// are drawn twice from the same seed, first for their sum: no list is kept.
type serveGenClient struct {
	client  int
	label   string
	seed    uint64
	windows []rateWindow
	scale   float64
	lengths *rand.Rand

	at     time.Duration // of the next arrival
	gaps   *rand.Rand
	left   int     // arrivals left in the open window
	passed float64 // sum of the gaps so far
	unit   float64 // seconds per drawn unit
}

// advance moves to the next arrival, false behind the last.
func (c *serveGenClient) advance() bool {
	for c.left == 0 {
		if c.gaps != nil {
			c.windows = c.windows[1:]
		}
		if len(c.windows) == 0 {
			return false
		}
		c.openWindow()
	}
	w := c.windows[0]
	c.left--
	c.passed += w.gap(c.gaps)
	c.at = w.start + time.Duration(c.passed*c.unit*float64(time.Second))
	return true
}

func (c *serveGenClient) openWindow() {
	w := c.windows[0]
	seed := mix(c.seed, uint64(w.start))
	c.gaps = rand.New(rand.NewPCG(seed, 1))
	expected := min(w.rate*c.scale*serveGenRateWindow.Seconds(), maxWindowArrivals)
	c.left = int(expected + c.gaps.Float64())
	c.gaps = rand.New(rand.NewPCG(seed, 2))
	sum := 0.0
	for range c.left + 1 { // the last gap reaches to the window's end
		sum += w.gap(c.gaps)
	}
	c.gaps = rand.New(rand.NewPCG(seed, 2))
	c.passed, c.unit = 0, 0
	if sum > 0 {
		c.unit = serveGenRateWindow.Seconds() / sum
	}
}

// gap draws one gap of scale 1.
func (w rateWindow) gap(r *rand.Rand) float64 {
	if w.weibull {
		return math.Pow(r.ExpFloat64(), 1/w.shape)
	}
	return gamma(r, w.shape)
}

// gamma draws from the gamma law of scale 1: Marsaglia and Tsang, "A simple
// method for generating gamma variables", 2000, with their boost below shape 1.
func gamma(r *rand.Rand, shape float64) float64 {
	if shape < 1 {
		return gamma(r, shape+1) * math.Pow(1-r.Float64(), 1/shape)
	}
	d := shape - 1.0/3
	k := 1 / math.Sqrt(9*d)
	for {
		x := r.NormFloat64()
		v := 1 + k*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if math.Log(1-r.Float64()) < x*x/2+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}

// serveGenQueue orders clients by their next arrival.
type serveGenQueue []*serveGenClient

func (q serveGenQueue) Len() int { return len(q) }
func (q serveGenQueue) Less(i, j int) bool {
	if q[i].at != q[j].at {
		return q[i].at < q[j].at
	}
	return q[i].client < q[j].client
}
func (q serveGenQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface; clients never come back.
func (q *serveGenQueue) Push(x any) { *q = append(*q, x.(*serveGenClient)) }

// Pop implements heap.Interface.
func (q *serveGenQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}
