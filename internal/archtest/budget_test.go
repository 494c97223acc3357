package archtest_test

import (
	"go/ast"
	"slices"
)

// The budgets, in lines and counts.
const (
	maxFunction    = 70 // from func to the closing brace
	usualFunction  = 40 // 95% of all functions have no more
	maxFile        = 500
	maxParams      = 5
	maxMethods     = 4
	usualShare     = 0.95
	leastFunctions = 20 // fewer say nothing about a share
)

// length is the number of lines of a function.
func (t *tree) length(f *ast.FuncDecl) int {
	return t.fset.Position(f.End()).Line - t.fset.Position(f.Pos()).Line + 1
}

// checkFunctionLength finds functions beyond the bound, and all long ones when
// they are too many.
func checkFunctionLength(t *tree) (found []finding) {
	var lengths []int
	var long []finding
	t.each(isCode, func(_ *folder, s *source) {
		functions(s, func(f *ast.FuncDecl) {
			n := t.length(f)
			lengths = append(lengths, n)
			switch {
			case n > maxFunction:
				found = append(found, t.at(f.Pos(), "%s has %d lines, more than %d", f.Name.Name, n, maxFunction))
			case n > usualFunction:
				long = append(long, t.at(f.Pos(), "%s has %d lines, and more than 5%% of all functions have more than %d", f.Name.Name, n, usualFunction))
			}
		})
	})
	slices.Sort(lengths)
	if len(lengths) >= leastFunctions && lengths[int(usualShare*float64(len(lengths)-1))] > usualFunction {
		found = append(found, long...)
	}
	return found
}

// checkFileLength finds files beyond the bound.
func checkFileLength(t *tree) (found []finding) {
	t.each(isCode, func(_ *folder, s *source) {
		if s.lines > maxFile {
			found = append(found, t.at(s.ast.Package, "%d lines, more than %d", s.lines, maxFile))
		}
	})
	return found
}

// parameters counts a function's parameters.
func parameters(f *ast.FuncType) int {
	n := 0
	for _, p := range f.Params.List {
		n += max(1, len(p.Names))
	}
	return n
}

// checkParameters finds functions and interface methods with too many.
func checkParameters(t *tree) (found []finding) {
	judge := func(name *ast.Ident, f *ast.FuncType) {
		if n := parameters(f); n > maxParams {
			found = append(found, t.at(name.Pos(), "%s has %d parameters, more than %d", name.Name, n, maxParams))
		}
	}
	t.each(isCode, func(_ *folder, s *source) {
		ast.Inspect(s.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				judge(n.Name, n.Type)
			case *ast.InterfaceType:
				for _, m := range n.Methods.List {
					if f, ok := m.Type.(*ast.FuncType); ok {
						judge(m.Names[0], f)
					}
				}
			}
			return true
		})
	})
	return found
}

// checkInterfaces finds interfaces with too many methods. An embedded interface
// counts as one.
func checkInterfaces(t *tree) (found []finding) {
	t.each(isCode, func(_ *folder, s *source) {
		ast.Inspect(s.ast, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if i, ok := spec.Type.(*ast.InterfaceType); ok && i.Methods.NumFields() > maxMethods {
				found = append(found, t.at(spec.Pos(), "interface %s has %d methods, more than %d", spec.Name.Name, i.Methods.NumFields(), maxMethods))
			}
			return true
		})
	})
	return found
}
