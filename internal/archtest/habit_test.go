package archtest_test

import (
	"go/ast"
	"path"
	"strings"
)

// bubbles are the names of the functions that open a bubble of fake time:
// synctest.Test, and what a folder's tests have around it.
type bubbles map[string]bool

// bubblesOf finds a folder's own.
func bubblesOf(f *folder) bubbles {
	b := bubbles{"synctest.Test": true}
	for _, s := range f.files {
		if !s.test() {
			continue
		}
		functions(s, func(d *ast.FuncDecl) {
			if strings.HasPrefix(d.Name.Name, "Test") {
				return
			}
			ast.Inspect(d.Body, func(n ast.Node) bool {
				if called(n) == "synctest.Test" {
					b[d.Name.Name] = true
				}
				return true
			})
		})
	}
	return b
}

// opened says whether n is a call that opens a bubble.
func (b bubbles) opened(n ast.Node) bool {
	c, ok := n.(*ast.CallExpr)
	if !ok {
		return false
	}
	if id, ok := c.Fun.(*ast.Ident); ok {
		return b[id.Name]
	}
	return b[called(c)]
}

// checkSleeps finds sleeps of tests in real time. Within a synctest bubble time
// is fake. A loop that polls until a deadline sleeps between looks, as
//
//	for deadline := ...; !done(); time.Sleep(d)
//
// A function counts as within a bubble when everything that uses it is.
func checkSleeps(t *tree) (found []finding) {
	for _, f := range t.folders {
		b := bubblesOf(f)
		inside := b.users(f)
		for _, s := range f.files {
			if !s.test() && !testOnly(f.path) {
				continue
			}
			functions(s, func(d *ast.FuncDecl) {
				if inside[d.Name.Name] {
					return
				}
				b.outside(d.Body, func(n ast.Node) {
					if called(n) == "time.Sleep" {
						one := t.at(n.Pos(), "%s sleeps in real time: use a synctest bubble, or poll with a deadline", d.Name.Name)
						one.in = d.Name.Name
						found = append(found, one)
					}
				})
			})
		}
	}
	return found
}

// outside visits what is neither in a bubble nor the pause of a poll.
func (b bubbles) outside(n ast.Node, visit func(ast.Node)) {
	ast.Inspect(n, func(n ast.Node) bool {
		if n == nil || b.opened(n) {
			return false
		}
		if loop, ok := n.(*ast.ForStmt); ok && loop.Init != nil && loop.Cond != nil && loop.Post != nil {
			b.outside(loop.Body, visit)
			return false
		}
		visit(n)
		return true
	})
}

// users names the functions of a folder's tests that are used in
// bubbles only, directly or through another one of them.
func (b bubbles) users(f *folder) map[string]bool {
	inside := make(map[string]bool)
	for {
		outside, used := make(map[string]bool), make(map[string]bool)
		for _, s := range f.files {
			if !s.test() {
				continue
			}
			functions(s, func(d *ast.FuncDecl) {
				note := func(set map[string]bool) func(ast.Node) bool {
					return func(n ast.Node) bool {
						if id, ok := n.(*ast.Ident); ok {
							set[id.Name] = true
						}
						return true
					}
				}
				ast.Inspect(d.Body, note(used))
				if inside[d.Name.Name] {
					return
				}
				ast.Inspect(d.Body, func(n ast.Node) bool {
					if n == nil || b.opened(n) {
						return false
					}
					return note(outside)(n)
				})
			})
		}
		before := len(inside)
		for name := range used {
			if !outside[name] {
				inside[name] = true
			}
		}
		if len(inside) == before {
			return inside
		}
	}
}

// checkSkips finds tests that may not run. A fuzz target may pass over an input.
func checkSkips(t *tree) (found []finding) {
	for _, f := range t.folders {
		for _, s := range f.files {
			if !s.test() && !testOnly(f.path) {
				continue
			}
			functions(s, func(d *ast.FuncDecl) {
				if strings.HasPrefix(d.Name.Name, "Fuzz") {
					return
				}
				ast.Inspect(d.Body, func(n ast.Node) bool {
					c, ok := n.(*ast.CallExpr)
					if !ok {
						return true
					}
					sel, ok := c.Fun.(*ast.SelectorExpr)
					if ok && (sel.Sel.Name == "Skip" || sel.Sel.Name == "Skipf" || sel.Sel.Name == "SkipNow") {
						one := t.at(n.Pos(), "%s may skip: a test that does not run proves nothing", d.Name.Name)
						one.in = d.Name.Name
						found = append(found, one)
					}
					return true
				})
			})
		}
	}
	return found
}

// marks are the words of unfinished work, put together so that this file has none.
var marks = []string{"TO" + "DO", "FIX" + "ME", "XX" + "X"}

// checkMarks finds unfinished work in comments.
func checkMarks(t *tree) (found []finding) {
	t.each(func(*source) bool { return true }, func(_ *folder, s *source) {
		for _, group := range s.ast.Comments {
			for _, c := range group.List {
				for _, mark := range marks {
					if strings.Contains(c.Text, mark) {
						found = append(found, t.at(c.Pos(), "%s: do it, or write an issue", mark))
					}
				}
			}
		}
	})
	return found
}

// checkExternalTests finds tests inside their package: they see what users do
// not, and hold its insides in place. export_test.go is the door for the rest.
func checkExternalTests(t *tree) (found []finding) {
	t.each(isTest, func(f *folder, s *source) {
		name := s.ast.Name.Name
		if strings.HasSuffix(name, "_test") || name == "main" || path.Base(s.path) == "export_test.go" {
			return
		}
		found = append(found, t.at(s.ast.Name.Pos(), "package %s, want %s_test", name, name))
	})
	return found
}
