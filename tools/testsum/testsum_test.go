package main

import (
	"strings"
	"testing"
)

// Output as `go test -json` writes it.
const (
	passing = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN TestA\n"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"pass","Package":"p","Elapsed":0.2}
`
	failing = `{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:3: wrong\n"}
{"Action":"fail","Package":"p","Test":"TestB","Elapsed":0.1}
{"Action":"fail","Package":"p","Elapsed":0.2}
`
	skipping = `{"Action":"output","Package":"p","Test":"TestC","Output":"=== RUN   TestC\n"}
{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:7: no C compiler\n"}
{"Action":"skip","Package":"p","Test":"TestC","Elapsed":0}
`
	elsewhere = `{"Action":"pass","Package":"p","Test":"TestC","Elapsed":0}
`
	input = `{"Action":"skip","Package":"p","Test":"FuzzD/seed#1","Elapsed":0}
`
	broken = `{"Action":"build-output","ImportPath":"p","Output":"undefined: x\n"}
{"Action":"fail","Package":"p","Elapsed":0,"FailedBuild":"p"}
`
)

func TestSummarize(t *testing.T) {
	tests := map[string]struct {
		in     string
		strict bool
		status int
		want   string
	}{
		"all pass":            {passing, true, 0, "Every test ran."},
		"a failure":           {passing + failing, false, 1, "b_test.go:3: wrong"},
		"a build":             {broken, false, 1, "undefined: x"},
		"a skip":              {passing + skipping, false, 0, "1 tests did not run:\n  p TestC: no C compiler\n"},
		"a skip in CI":        {passing + skipping, true, 1, "p TestC"},
		"it ran another time": {skipping + elsewhere, true, 0, "Every test ran."},
		"a fuzz input":        {input, true, 0, "Every test ran."},
		"no event":            {"panic: oh\n", false, 0, "panic: oh"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			if got := Summarize(strings.NewReader(tt.in), &out, tt.strict); got != tt.status {
				t.Errorf("got status %d, want %d", got, tt.status)
			}
			if !strings.Contains(out.String(), tt.want) {
				t.Errorf("got %q, want %q in it", out.String(), tt.want)
			}
		})
	}
}
