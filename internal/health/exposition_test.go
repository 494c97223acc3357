package health_test

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/spillway/spillway/internal/health"
)

func TestSum(t *testing.T) {
	cases := map[string]struct {
		text   string
		labels map[string]string
		sum    float64
		series int
		fails  bool
	}{
		"bare":            {"# HELP q x\n# TYPE q gauge\nq 3\n", nil, 3, 1, false},
		"missing":         {"qq 3\nq_total 4\n", nil, 0, 0, false},
		"added up":        {"q{e=\"0\"} 3\nq{e=\"1\"} 4 1700000000000\n", nil, 7, 2, false},
		"labels":          {"q{e=\"0\",m=\"a\"} 3\nq{e=\"0\",m=\"b\"} 4\nq 9\n", map[string]string{"m": "b", "e": "0"}, 4, 1, false},
		"spaces":          {"  q  {  e = \"0\" , }\t3e1 \r\n", map[string]string{"e": "0"}, 30, 1, false},
		"escapes":         {"q{e=\"a\\\"}\\\\\\n\"} 3\n", map[string]string{"e": "a\"}\\\n"}, 3, 1, false},
		"exemplar":        {"q 3 # {trace=\"x\"} 1\n", nil, 3, 1, false},
		"no last newline": {"q 3", nil, 3, 1, false},
		"not a number":    {"q NaN\n", nil, 0, 0, false},
		"infinite":        {"q +Inf\n", nil, math.Inf(1), 1, false},
		"other's garbage": {"x{ 1\nq 3\n", nil, 3, 1, false},
		"no value":        {"q\n", nil, 0, 0, true},
		"words":           {"q many\n", nil, 0, 0, true},
		"open labels":     {"q{e=\"0\" 3\n", nil, 0, 0, true},
		"open value":      {"q{e=\"0} 3\n", nil, 0, 0, true},
		"open escape":     {"q{e=\"\\", nil, 0, 0, true},
		"no label value":  {"q{e} 3\n", nil, 0, 0, true},
		"no quotes":       {"q{e=0} 3\n", nil, 0, 0, true},
		"endless line":    {strings.Repeat("x", 70<<10), nil, 0, 0, true},
		"endless text":    {strings.Repeat("# "+strings.Repeat("x", 1000)+"\n", 4300) + "q 3\n", nil, 0, 0, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			sum, series, err := health.Sum(strings.NewReader(c.text), "q", c.labels)
			if (err != nil) != c.fails || sum != c.sum || series != c.series {
				t.Errorf("got %v in %d series, %v; want %v in %d", sum, series, err, c.sum, c.series)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	cases := map[string]struct {
		text, kind string
		want       int64
		fails      string // part of the error
	}{
		"vllm, two engines": {"vllm:num_requests_running{engine=\"0\"} 3\nvllm:num_requests_running{engine=\"1\"} 4\nvllm:num_requests_waiting{engine=\"0\"} 0\nvllm:num_requests_waiting{engine=\"1\"} 5\n", "auto", 12, ""},
		"sglang, ranks of one engine": {
			"sglang:num_running_reqs{tp_rank=\"0\",pp_rank=\"0\"} 3\nsglang:num_running_reqs{tp_rank=\"1\",pp_rank=\"0\"} 3\nsglang:num_queue_reqs 2\n",
			"sglang", 5, "",
		},
		"llamacpp":      {"llamacpp:requests_processing 1\nllamacpp:requests_deferred 2\n", "", 3, ""},
		"tgi":           {"tgi_batch_current_size 8\ntgi_queue_size 1\n", "tgi", 9, ""},
		"trtllm":        {"trtllm_num_requests_running 8\ntrtllm_num_requests_waiting 1\n", "auto", 9, ""},
		"trtllm, older": {"trtllm_num_active_requests 8\ntrtllm_num_queued_requests 1\n", "trtllm", 9, ""},
		"idle":          {"tgi_batch_current_size 0\ntgi_queue_size 0\n", "tgi", 0, ""},
		"another kind":  {"tgi_batch_current_size 8\ntgi_queue_size 1\n", "vllm", 0, "no metric"},
		"nothing":       {"", "auto", 0, "no metric"},
		"half is gone":  {"vllm:num_requests_running 3\n", "auto", 0, "vllm:num_requests_waiting is missing"},
		"other half":    {"vllm:num_requests_waiting 3\n", "auto", 0, "vllm:num_requests_running is missing"},
		"nonsense":      {"tgi_batch_current_size -8\ntgi_queue_size 1\n", "tgi", 0, "add up to"},
		"infinite":      {"tgi_batch_current_size +Inf\ntgi_queue_size 1\n", "tgi", 0, "add up to"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := health.Load(strings.NewReader(c.text), c.kind)
			if c.fails == "" && err != nil || c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)) || got != c.want {
				t.Errorf("got %d, %v; want %d, %q", got, err, c.want, c.fails)
			}
		})
	}
}

// FuzzSum compares with Prometheus' own parser: what it takes adds up to the
// same.
func FuzzSum(f *testing.F) {
	f.Add([]byte("# TYPE q gauge\nq{e=\"0\",m=\"a\\\\\\\"\"} 3\nq 4 17\n"))
	f.Add([]byte("q{} 1e3\nx 3\n"))
	f.Add([]byte("q{e=\"0\",} NaN\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		sum, series, err := health.Sum(bytes.NewReader(text), "q", nil)
		families, theirErr := parse(text)
		if theirErr != nil || len(text) > 60<<10 {
			return
		}
		if err != nil {
			t.Fatalf("refused what Prometheus takes: %v", err)
		}
		wantSum, wantSeries, comparable := total(families["q"])
		if !comparable {
			return
		}
		if series != wantSeries || math.Abs(sum-wantSum) > 1e-9*math.Abs(wantSum) {
			t.Fatalf("got %v in %d series, want %v in %d", sum, series, wantSum, wantSeries)
		}
	})
}

// parse is Prometheus' own parser with its classic names.
func parse(text []byte) (families map[string]*dto.MetricFamily, err error) {
	p := expfmt.NewTextParser(model.LegacyValidation)
	return p.TextToMetricFamilies(bytes.NewReader(text))
}

// total adds up a family; false when its type spreads values over several names
// or the sum depends on the order.
func total(f *dto.MetricFamily) (sum float64, series int, ok bool) {
	for _, m := range f.GetMetric() {
		var v float64
		switch {
		case m.Gauge != nil:
			v = m.Gauge.GetValue()
		case m.Counter != nil:
			v = m.Counter.GetValue()
		case m.Untyped != nil:
			v = m.Untyped.GetValue()
		default:
			return 0, 0, false
		}
		if math.IsNaN(v) {
			continue
		}
		if math.IsInf(v, 0) || math.Abs(v) > 1e15 {
			return 0, 0, false
		}
		sum += v
		series++
	}
	return sum, series, true
}

// exposition is about what a vLLM server with histograms writes.
func exposition() []byte {
	var b bytes.Buffer
	for h := range 20 {
		fmt.Fprintf(&b, "# HELP vllm:histogram_%d_seconds Something.\n# TYPE vllm:histogram_%d_seconds histogram\n", h, h)
		for le := range 25 {
			fmt.Fprintf(&b, "vllm:histogram_%d_seconds_bucket{engine=\"0\",le=\"%d.0\",model_name=\"meta-llama/Llama-3.1-8B-Instruct\"} %d.0\n", h, le, le*1000)
		}
	}
	b.WriteString("vllm:num_requests_running{engine=\"0\",model_name=\"meta-llama/Llama-3.1-8B-Instruct\"} 12.0\n")
	b.WriteString("vllm:num_requests_waiting{engine=\"0\",model_name=\"meta-llama/Llama-3.1-8B-Instruct\"} 3.0\n")
	return b.Bytes()
}

func BenchmarkLoad(b *testing.B) {
	text := exposition()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if n, err := health.Load(bytes.NewReader(text), health.KindAuto); err != nil || n != 15 {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkLoadByExpfmt(b *testing.B) {
	text := exposition()
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		p := expfmt.NewTextParser(model.LegacyValidation)
		if _, err := p.TextToMetricFamilies(io.Reader(bytes.NewReader(text))); err != nil {
			b.Fatal(err)
		}
	}
}
