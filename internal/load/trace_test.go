package load_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/load"
)

func open(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// all reads rows to the end.
func all(t *testing.T, rows load.Rows) []load.Row {
	t.Helper()
	var out []load.Row
	for {
		r, err := rows.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
}

func TestRows(t *testing.T) {
	tests := map[string]struct {
		file  string
		count int
		index int
		want  load.Row
	}{
		"azure": {"azure-2023-conv.csv", 60, 1, load.Row{At: 4314579 * time.Microsecond, Input: 396, Output: 109}},
		"gzip":  {"azure-2023-conv-tail.csv.gz", 20, 0, load.Row{Input: 200, Output: 217}},
		"mooncake": {"mooncake-conversation.jsonl", 40, 3, load.Row{
			Input: 2290, Output: 316,
			Prefix: []load.Blocks{{First: 0, Last: 0, Tokens: 512}, {First: 42, Last: 45, Tokens: 512}},
		}},
		"arena": {"arena-27clients.csv", 40, 2, load.Row{At: 441893184, Client: "dummy-lora-7b-rank-8-0", Input: 456, Output: 156}},
		"vllm":  {"vllm-run-rtx4090-llama-3.1-8b.requests.jsonl", 30, 1, load.Row{At: 265091584, Input: 1034, Output: 769}},
		"ragpulse": {"ragpulse-days0-3.jsonl", 30, 0, load.Row{
			Input: 2926, Output: 154, Session: "1758081635837-uficr5ams6tj",
			Prefix: []load.Blocks{
				{8302, 8302, 453}, {11159, 11159, 453}, {11576, 11576, 453}, {5856, 5856, 241}, {5859, 5859, 241}, {5849, 5849, 241},
				{5854, 5854, 241}, {7520, 7520, 241}, {5850, 5850, 241}, {15200, 15200, 331}, {23649, 23649, 8},
			},
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, err := load.DetectFormat(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			rows, err := load.NewRows(open(t, tt.file), f)
			if err != nil {
				t.Fatal(err)
			}
			got := all(t, rows)
			if len(got) != tt.count {
				t.Fatalf("rows: got %d, want %d", len(got), tt.count)
			}
			if diff := cmp.Diff(tt.want, got[tt.index]); diff != "" {
				t.Errorf("row %d (-want +got):\n%s", tt.index, diff)
			}
			for i := 1; i < len(got); i++ {
				if got[i].At < got[i-1].At {
					t.Errorf("row %d runs backwards", i)
				}
			}
		})
	}
}

func TestRowsRefuse(t *testing.T) {
	tests := map[string]struct {
		format load.Format
		text   string
		want   string
	}{
		"no column":  {load.Azure2023, "TIMESTAMP,ContextTokens\n", `header has no column "GeneratedTokens"`},
		"not a time": {load.Azure2023, "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "row 1"},
		"negative":   {load.Arena, "client,prompt_len,output_len,req_time_s\na,-1,2,0\n", "row 1: value out of range"},
		"infinite":   {load.Arena, "client,prompt_len,output_len,req_time_s\na,1,2,+Inf\n", "row 1"},
		"huge":       {load.Mooncake, `{"timestamp":0,"input_length":99999999,"output_length":1}`, "line 1: value out of range"},
		"cut":        {load.VLLMRun, `{"input_toks":1`, "line 1"},
		"no clock":   {load.AgentSessions, "", "has no rows with a clock"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			rows, err := load.NewRows(strings.NewReader(tt.text), tt.format)
			if err == nil {
				_, err = rows.Next()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error: got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestDetectFormat(t *testing.T) {
	tests := map[string]load.Format{
		"/data/azure-2023-conv.csv.gz": load.Azure2023, "mooncake-conversation.jsonl": load.Mooncake,
		"arena-27clients.csv": load.Arena, "ragpulse-days0-3.jsonl.gz": load.RAGPulse,
		"vllm-run-x.requests.jsonl": load.VLLMRun, "agent-coding-sessions-odd.jsonl.gz": load.AgentSessions,
		"servegen-deepseek-r1-rates.csv.gz": load.ServeGen,
	}
	for name, want := range tests {
		if got, err := load.DetectFormat(name); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	if _, err := load.DetectFormat("mine.csv"); err == nil {
		t.Error("mine.csv: got no error")
	}
}

func TestSessions(t *testing.T) {
	s, err := load.NewSessions(open(t, "agent-coding-sessions-odd.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]int{}
	var nested load.Session
	for {
		next, err := s.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		rows[next.Name] += len(next.Rows)
		if strings.Contains(next.Name, "/") && nested.Name == "" {
			nested = next
		}
	}
	for _, name := range []string{"trace_0101", "trace_0103", "trace_0187"} {
		if rows[name] != 3 {
			t.Errorf("%s: got %d requests, want 3", name, rows[name])
		}
	}
	if rows["trace_0291"] == 0 {
		t.Error("trace_0291: got no requests of the main conversation")
	}
	if nested.Name == "" || nested.Rows[0].Prefix[0].Tokens != 64 {
		t.Errorf("nested conversation: got %+v", nested)
	}
}

func TestSessionsRefuse(t *testing.T) {
	for name, text := range map[string]string{
		"no session": `{"kind":"request"}`,
		"backwards":  `{"kind":"request","session":"a","in":1,"out":1,"hash_ids":"9-3"}`,
		"think":      `{"kind":"request","session":"a","in":1,"out":1,"think_time":-1}`,
	} {
		t.Run(name, func(t *testing.T) {
			s, err := load.NewSessions(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Next(); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("got %v, want a refusal", err)
			}
		})
	}
}

func TestServeGen(t *testing.T) {
	law, err := load.NewServeGen(open(t, "servegen-deepseek-r1-rates.csv"), open(t, "servegen-deepseek-r1-lengths.jsonl.gz"))
	if err != nil {
		t.Fatal(err)
	}
	got := all(t, law.Rows(7, 1))
	// The measured rates of the excerpt's 28 windows, 35.8233 requests/s
	// together, times 600 s; each window rounds by less than one.
	const want = 600 * 35.8233
	if n := float64(len(got)); n < want-28 || n > want+28 {
		t.Errorf("rows: got %d, want about %.0f", len(got), want)
	}
	clients := map[string]int{}
	window := 0
	for i, r := range got {
		clients[r.Client]++
		if i > 0 && r.At < got[i-1].At {
			t.Fatalf("row %d runs backwards", i)
		}
		if r.Client == "client-33" && r.At >= 57000*time.Second && r.At < 57600*time.Second {
			window++
		}
	}
	// 6.0616666 requests/s x 600 s, the fraction rounded by a draw.
	if window != 3637 && window != 3636 {
		t.Errorf("client-33 at 57000 s: got %d requests, want 3637", window)
	}
	if len(clients) != 4 {
		t.Errorf("clients: got %v, want 4", clients)
	}
	if diff := cmp.Diff(got[:100], all(t, law.Rows(7, 1))[:100]); diff != "" {
		t.Errorf("the same seed draws otherwise:\n%s", diff)
	}
	half := all(t, law.Rows(7, 0.5))
	if r := float64(len(half)) / float64(len(got)); r < 0.49 || r > 0.51 {
		t.Errorf("rate scale 0.5: got %.3f of the rows", r)
	}
}

func TestProfile(t *testing.T) {
	got, err := load.ParseProfile("10/s:30s, ramp 10-50/s:1m, burst 200/s:5s,step 0/s:1s")
	if err != nil {
		t.Fatal(err)
	}
	want := []load.Segment{{10, 10, 30 * time.Second}, {10, 50, time.Minute}, {200, 200, 5 * time.Second}, {0, 0, time.Second}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("segments (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "10/s", "10:3s", "ramp 10/s:3s", "wave 1/s:1s", "-1/s:1s", "NaN/s:1s", "1/s:0s", "1/s:-3s", "1e9/s:1s"} {
		if _, err := load.ParseProfile(bad); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
}

func FuzzRows(f *testing.F) {
	for _, name := range []string{"azure-2023-conv.csv", "mooncake-conversation.jsonl", "arena-27clients.csv", "ragpulse-days0-3.jsonl", "vllm-run-rtx4090-llama-3.1-8b.requests.jsonl", "agent-coding-sessions-odd.jsonl"} {
		text, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text[:min(len(text), 1500)]))
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, format := range load.Formats() {
			rows, err := load.NewRows(strings.NewReader(text), format)
			for err == nil {
				var r load.Row
				if r, err = rows.Next(); err == nil && (r.Input < 1 || r.Output < 1 || r.At < 0) {
					t.Fatalf("%s: got %+v", format, r)
				}
			}
		}
		s, err := load.NewSessions(strings.NewReader(text))
		for err == nil {
			var next load.Session
			if next, err = s.Next(); err == nil && len(next.Rows) == 0 {
				t.Fatal("got an empty session")
			}
		}
	})
}

func FuzzProfile(f *testing.F) {
	f.Add("10/s:30s,ramp 10-50/s:60s,burst 200/s:5s")
	f.Fuzz(func(t *testing.T, text string) {
		segments, err := load.ParseProfile(text)
		for _, s := range segments {
			if err == nil && (s.Length <= 0 || s.From < 0 || s.To < 0) {
				t.Fatalf("%q: got %+v", text, s)
			}
		}
	})
}
