package rule

import (
	"slices"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
)

// plain is a visitor that brings trees that differ in how they are written into one
// form: words instead of signs, no `!=`, and constants on the right.
type plain struct{}

// synonyms of operators.
var synonyms = map[string]string{"&&": "and", "||": "or", "!": "not"}

// mirrored are the operators that say the same with their sides exchanged.
var mirrored = map[string]string{"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

// Visit implements ast.Visitor. The parts of a node are in form before it.
func (plain) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.UnaryNode:
		if word, ok := synonyms[n.Operator]; ok {
			n.Operator = word
		}
	case *ast.BinaryNode:
		if word, ok := synonyms[n.Operator]; ok {
			n.Operator = word
		}
		if back, ok := mirrored[n.Operator]; ok && constant(n.Left) && !constant(n.Right) {
			n.Operator, n.Left, n.Right = back, n.Right, n.Left
		}
		if n.Operator == "!=" {
			n.Operator = "=="
			ast.Patch(node, &ast.UnaryNode{Operator: "not", Node: n})
		}
	}
}

// truth is what is known of an expression without a request.
type truth uint8

const (
	depends truth = iota
	never
	surely
)

// truthOf finds out whether an expression in form is the same for every request. It
// knows constants, what a name can be, and the sides of an `and` that exclude one
// another; not everything that can be known.
func truthOf(node ast.Node) truth {
	switch n := node.(type) {
	case *ast.BoolNode:
		return known(n.Value)
	case *ast.UnaryNode:
		if n.Operator == "not" {
			return [...]truth{depends: depends, never: surely, surely: never}[truthOf(n.Node)]
		}
	case *ast.ConditionalNode:
		yes, no := truthOf(n.Exp1), truthOf(n.Exp2)
		switch cond := truthOf(n.Cond); {
		case cond == surely || yes == no:
			return yes
		case cond == never:
			return no
		}
		return depends
	case *ast.BinaryNode:
		if excluded(sides(n)) {
			return never
		}
		switch n.Operator {
		case "and":
			return joined(n, never, surely)
		case "or":
			return joined(n, surely, never)
		}
	}
	return evaluated(node)
}

// joined is the truth of two sides of which one that is strong decides alone, and one
// that is weak leaves it to the other.
func joined(n *ast.BinaryNode, strong, weak truth) truth {
	left, right := truthOf(n.Left), truthOf(n.Right)
	switch {
	case left == strong || right == strong:
		return strong
	case left == weak:
		return right
	case right == weak:
		return left
	}
	return depends
}

// sides are what an `and` joins, however it is nested.
func sides(node ast.Node) []ast.Node {
	if n, ok := node.(*ast.BinaryNode); ok && n.Operator == "and" {
		return append(sides(n.Left), sides(n.Right)...)
	}
	return []ast.Node{node}
}

// excluded says whether the sides of an `and` cannot all be true: one is wanted true and
// false, or a name is to be two values at once, or a number that there is not.
func excluded(list []ast.Node) bool {
	f := facts{make(map[string]bool), make(map[string][]string), make(map[string]span)}
	return slices.ContainsFunc(list, func(side ast.Node) bool { return !f.learn(side) })
}

// facts are what the sides of an `and` say that were looked at, each by the text of what
// it is said of.
type facts struct {
	said    map[string]bool     // whether an expression is to be true
	choices map[string][]string // the constants that are left
	spans   map[string]span     // the numbers that are left
}

// learn adds a side; false is that it contradicts the ones before.
func (f facts) learn(side ast.Node) bool {
	want := true
	if n, ok := side.(*ast.UnaryNode); ok && n.Operator == "not" {
		side, want = n.Node, false
	}
	form := side.String()
	if was, ok := f.said[form]; ok && was != want {
		return false
	}
	f.said[form] = want
	n, ok := side.(*ast.BinaryNode)
	return !ok || !want || f.choose(n) && f.narrow(n)
}

// choose keeps the constants that the left side can still be; false is none.
func (f facts) choose(n *ast.BinaryNode) bool {
	nodes, ok := choices(n)
	if !ok {
		return true
	}
	name := n.Left.String()
	before, known := f.choices[name]
	var left []string
	for _, c := range nodes {
		if !constant(c) {
			return true
		}
		if text := c.String(); !known || slices.Contains(before, text) {
			left = append(left, text)
		}
	}
	f.choices[name] = left
	return len(left) > 0
}

// narrow keeps the numbers that the left side can still be; false is none.
func (f facts) narrow(n *ast.BinaryNode) bool {
	v, ok := number(n.Right)
	if !ok {
		return true
	}
	name := n.Left.String()
	can, whole := wholes[name]
	if now, ok := f.spans[name]; ok {
		can = now
	} else if !whole {
		can = everything
	}
	f.spans[name] = can.narrow(n.Operator, v)
	return !f.spans[name].empty(whole)
}

// evaluated runs an expression that has no names in it.
func evaluated(node ast.Node) truth {
	v := &names{}
	ast.Walk(&node, v)
	if v.found {
		return depends
	}
	got, err := expr.Eval(node.String(), nil)
	if b, ok := got.(bool); ok && err == nil {
		return known(b)
	}
	return depends
}

// known is the truth of a constant.
func known(b bool) truth {
	if b {
		return surely
	}
	return never
}

// names looks for anything that depends on a request.
type names struct{ found bool }

// Visit implements ast.Visitor.
func (v *names) Visit(node *ast.Node) {
	switch (*node).(type) {
	case *ast.IdentifierNode:
		v.found = true
	}
}
