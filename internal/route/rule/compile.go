package rule

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/parser"

	"github.com/spillway/spillway/internal/inference"
)

// Bounds of one expression.
const (
	maxSource = 4 << 10  // bytes
	maxNodes  = 300      // of its tree
	maxMemory = 64 << 10 // elements that it may make while it runs, as the library counts
)

// builtins are the functions that expressions may call: none of them repeats or
// loops.
var builtins = []string{"len", "lower", "upper", "trim", "int", "float", "string", "abs", "min", "max", "hasPrefix", "hasSuffix", "indexOf"}

// always is the form of expressions that are always true.
const always = "true"

// compile compiles an expression; nil is one that is always true. form is the same for
// expressions that differ in how they are written alone.
func compile(source string) (c *Condition, form string, err error) {
	if strings.TrimSpace(source) == "" {
		return nil, always, nil
	}
	if len(source) > maxSource {
		return nil, "", fmt.Errorf("longer than %d bytes", maxSource)
	}
	options := []expr.Option{expr.Env(&Request{}), expr.AsBool(), expr.MaxNodes(maxNodes), expr.DisableAllBuiltins()}
	for _, name := range builtins {
		options = append(options, expr.EnableBuiltin(name))
	}
	program, err := expr.Compile(source, options...)
	if err != nil {
		return nil, "", worded(err)
	}
	tree, err := parser.Parse(source)
	if err != nil {
		return nil, "", worded(err)
	}
	v := &visitor{}
	ast.Walk(&tree.Node, v)
	if v.err != nil {
		return nil, "", v.err
	}
	switch truthOf(tree.Node) {
	case never:
		return nil, "", errors.New("is never true")
	case surely:
		return nil, always, nil
	}
	return &Condition{source: source, program: program, needs: v.needs}, tree.Node.String(), nil
}

// String is the expression as it was written.
func (c *Condition) String() string { return c.source }

// worded is the library's error in one line, with the names that exist where one does
// not.
func worded(err error) error {
	text, _, _ := strings.Cut(err.Error(), "\n")
	if strings.HasPrefix(text, "unknown name") || strings.Contains(text, "has no field") {
		text += "; known are " + strings.Join(Fields(), ", ")
	}
	return errors.New(text)
}

// visitor looks for what an expression needs and what it must not have.
type visitor struct {
	needs needs
	err   error
}

// Visit implements ast.Visitor.
func (v *visitor) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		if n.Value == "$env" { // behind it nobody sees what is needed
			v.fail(errors.New("$env is not known: write the name alone"))
		}
		v.needs |= costly[n.Value]
	case *ast.BinaryNode:
		switch n.Operator {
		case "..":
			v.fail(errors.New("ranges are not allowed"))
		case "matches":
			if _, ok := n.Right.(*ast.StringNode); !ok { // a client's would be compiled for each request
				v.fail(errors.New("the pattern of matches must be a text"))
			}
		}
		v.fail(misspelt(n))
	case *ast.PredicateNode, *ast.PointerNode:
		v.fail(errors.New("loops are not allowed"))
	case *ast.VariableDeclaratorNode: // a few that double one another take any memory and time
		v.fail(errors.New("let is not allowed: write the value where it is wanted"))
	case *ast.SequenceNode:
		v.fail(errors.New("a second expression after ; is not allowed: combine them with and"))
	}
}

// fail keeps the first error.
func (v *visitor) fail(err error) {
	if v.err == nil {
		v.err = err
	}
}

// words are the values that a name can have, where there are few.
var words = map[string][]string{
	"class":   {"vip", "normal", "batch", "idle"},
	"weekday": weekdays[:],
	"surface": func() (names []string) {
		for _, s := range inference.Surfaces() {
			names = append(names, s.String())
		}
		return names
	}(),
}

// misspelt finds a comparison with a value that its name never has.
func misspelt(n *ast.BinaryNode) error {
	name, ok := n.Left.(*ast.IdentifierNode)
	other := n.Right
	if !ok {
		name, ok = n.Right.(*ast.IdentifierNode)
		other = n.Left
	}
	if !ok || words[name.Value] == nil {
		return nil
	}
	values := []ast.Node{other}
	switch n.Operator {
	case "==", "!=":
	case "in":
		if list, ok := other.(*ast.ArrayNode); ok {
			values = list.Nodes
		}
	default:
		return nil
	}
	for _, v := range values {
		if s, ok := v.(*ast.StringNode); ok && !slices.Contains(words[name.Value], s.Value) {
			return fmt.Errorf("%s is never %q; it is one of %s", name.Value, s.Value, strings.Join(words[name.Value], ", "))
		}
	}
	return nil
}

// truth is what is known of an expression without a request.
type truth uint8

const (
	depends truth = iota
	never
	surely
)

// truthOf finds out whether an expression is the same for every request.
func truthOf(node ast.Node) truth {
	switch n := node.(type) {
	case *ast.BoolNode:
		return known(n.Value)
	case *ast.UnaryNode:
		if n.Operator == "not" || n.Operator == "!" {
			return [...]truth{depends: depends, never: surely, surely: never}[truthOf(n.Node)]
		}
	case *ast.BinaryNode:
		left, right := truthOf(n.Left), truthOf(n.Right)
		switch n.Operator {
		case "and", "&&":
			if left == never || right == never || opposed(n.Left, n.Right) {
				return never
			}
			if left == surely {
				return right
			}
			if right == surely {
				return left
			}
			return depends
		case "or", "||":
			if left == surely || right == surely {
				return surely
			}
			if left == never {
				return right
			}
			if right == never {
				return left
			}
			return depends
		}
	}
	return evaluated(node)
}

// opposed says whether two sides of an "and" want one name to be two values at once.
func opposed(a, b ast.Node) bool {
	nameA, valueA := equality(a)
	nameB, valueB := equality(b)
	return nameA != "" && nameA == nameB && valueA != valueB
}

// equality reads `name == "value"`; "" is something else.
func equality(node ast.Node) (name, value string) {
	n, ok := node.(*ast.BinaryNode)
	if !ok || n.Operator != "==" {
		return "", ""
	}
	if _, constant := n.Left.(*ast.StringNode); constant {
		n = &ast.BinaryNode{Left: n.Right, Right: n.Left}
	}
	s, ok := n.Right.(*ast.StringNode)
	if !ok {
		return "", ""
	}
	return n.Left.String(), s.Value
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
