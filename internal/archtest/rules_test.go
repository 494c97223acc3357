package archtest_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// rule is one law of the repository.
type rule struct {
	name  string
	check func(*tree) []finding
}

// rules are all laws that are judged by reading the code.
func rules() []rule {
	return []rule{
		{"rings", checkRings},
		{"third parties", checkThirdParties},
		{"test-only packages", checkTestOnly},
		{"function length", checkFunctionLength},
		{"file length", checkFileLength},
		{"parameters", checkParameters},
		{"interface size", checkInterfaces},
		{"init", checkInit},
		{"package variables", checkVariables},
		{"package docs", checkPackageDocs},
		{"export docs", checkExportDocs},
		{"names", checkNames},
		{"sleeps", checkSleeps},
		{"skips", checkSkips},
		{"marks", checkMarks},
		{"external tests", checkExternalTests},
	}
}

// allowance is an exception: at is "file:function", or a file.
type allowance struct{ rule, at, reason string }

// within says whether the exception covers a finding.
func (a allowance) within(rule string, f finding) bool {
	return a.rule == rule && (a.at == f.path || a.at == f.path+":"+f.in)
}

func TestRules(t *testing.T) {
	code, err := parseTree(os.DirFS(root(t)))
	if err != nil {
		t.Fatal(err)
	}
	if len(code.folders) < 10 {
		t.Fatalf("got %d packages, want the whole repository", len(code.folders))
	}
	used, ran := make(map[allowance]bool), make(map[string]bool)
	for _, r := range rules() {
		t.Run(r.name, func(t *testing.T) {
			ran[r.name] = true
			for _, f := range r.check(code) {
				if i := slices.IndexFunc(allowances, func(a allowance) bool { return a.within(r.name, f) }); i >= 0 {
					used[allowances[i]] = true
					continue
				}
				t.Error(f)
			}
		})
	}
	for _, a := range allowances {
		if ran[a.rule] && !used[a] {
			t.Errorf("the exception %q for %s is not needed any more", a.rule, a.at)
		}
		if len(strings.Fields(a.reason)) < 5 {
			t.Errorf("the exception %q for %s needs a reason", a.rule, a.at)
		}
	}
}

// fixture is a small repository with what a rule should find in it.
type fixture struct {
	rule  string
	files map[string]string
	want  []string // parts of the findings, in order; none: the files are good
}

func TestRulesCanFail(t *testing.T) {
	failed := make(map[string]bool)
	for name, tt := range fixtures() {
		t.Run(name, func(t *testing.T) {
			files := make(fstest.MapFS)
			for p, text := range tt.files {
				files[p] = &fstest.MapFile{Data: []byte(text)}
			}
			code, err := parseTree(files)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(rules(), func(r rule) bool { return r.name == tt.rule })
			if i < 0 {
				t.Fatalf("no rule %q", tt.rule)
			}
			got := rules()[i].check(code)
			if len(got) != len(tt.want) {
				t.Fatalf("got %d findings %v, want %d", len(got), got, len(tt.want))
			}
			for i, part := range tt.want {
				if !strings.Contains(got[i].String(), part) {
					t.Errorf("got %q, want %q in it", got[i], part)
				}
			}
			failed[tt.rule] = failed[tt.rule] || len(tt.want) > 0
		})
	}
	for _, r := range rules() {
		if !failed[r.name] {
			t.Errorf("no fixture shows that rule %q can fail", r.name)
		}
	}
}
