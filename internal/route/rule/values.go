package rule

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"

	"github.com/expr-lang/expr/ast"

	"github.com/spillway/spillway/internal/inference"
)

// words are the values that a name can have, where there are few. One of geo is empty,
// too, where the place is not known.
var words = map[string][]string{
	"class":         {"vip", "normal", "batch", "idle"},
	"weekday":       weekdays[:],
	"surface":       each(inference.Surface.String),
	"path":          each(inference.Surface.Path),
	"geo.continent": {"AF", "AN", "AS", "EU", "NA", "OC", "SA"},
}

// each asks every surface for a word.
func each(word func(inference.Surface) string) (list []string) {
	for _, s := range inference.Surfaces() {
		list = append(list, word(s))
	}
	return list
}

// span is what a number can be, both ends included.
type span struct{ least, most float64 }

// everything is the span of all numbers, counts that of what is counted.
var (
	everything = span{math.Inf(-1), math.Inf(1)}
	counts     = span{0, math.Inf(1)}
)

// wholes are the whole numbers among the names.
var wholes = map[string]span{
	"hour": {0, 23}, "minute": {0, 59}, "prompt_tokens": counts, "max_tokens": counts, "images": counts,
	"messages": counts, "body_bytes": counts, "retry": counts, "geo.asn": counts,
}

// String is for messages.
func (s span) String() string {
	if math.IsInf(s.most, 1) {
		return fmt.Sprintf("%v or more", s.least)
	}
	return fmt.Sprintf("%v to %v", s.least, s.most)
}

// narrow keeps of a span what a comparison with v leaves.
func (s span) narrow(operator string, v float64) span {
	switch operator {
	case "==":
		return span{max(s.least, v), min(s.most, v)}
	case "<":
		s.most = min(s.most, math.Nextafter(v, math.Inf(-1)))
	case "<=":
		s.most = min(s.most, v)
	case ">":
		s.least = max(s.least, math.Nextafter(v, math.Inf(1)))
	case ">=":
		s.least = max(s.least, v)
	}
	return s
}

// empty says that no number is left, or no whole one where whole is wanted.
func (s span) empty(whole bool) bool {
	if whole {
		return math.Ceil(s.least) > math.Floor(s.most)
	}
	return s.least > s.most
}

// number reads a constant.
func number(node ast.Node) (v float64, ok bool) {
	switch n := node.(type) {
	case *ast.IntegerNode:
		return float64(n.Value), true
	case *ast.FloatNode:
		return n.Value, true
	case *ast.UnaryNode:
		v, ok = number(n.Node)
		return -v, ok && n.Operator == "-"
	}
	return 0, false
}

// constant says that a node is a text, a number or a truth.
func constant(node ast.Node) bool {
	switch node.(type) {
	case *ast.StringNode, *ast.BoolNode:
		return true
	}
	_, ok := number(node)
	return ok
}

// choices are the nodes one of which the left side must equal; ok is false where it is
// no such comparison.
func choices(n *ast.BinaryNode) (list []ast.Node, ok bool) {
	if n.Operator == "==" {
		return []ast.Node{n.Right}, true
	}
	if list, ok := n.Right.(*ast.ArrayNode); ok && n.Operator == "in" {
		return list.Nodes, true
	}
	return nil, false
}

// misspelt finds a comparison with a value that its name never has.
func misspelt(n *ast.BinaryNode) error {
	name := n.Left.String()
	nodes, _ := choices(n)
	for _, c := range nodes {
		if v, ok := number(c); ok {
			if can, known := wholes[name]; known && can.narrow("==", v).empty(true) {
				return fmt.Errorf("%s is never %v; it is %v", name, v, can)
			}
		}
		if s, ok := c.(*ast.StringNode); ok {
			if can := wanted(name, s.Value); can != "" {
				return fmt.Errorf("%s is never %q; it is %s", name, s.Value, can)
			}
		}
	}
	return nil
}

// wanted says what a name can be when it is never the text; "" is that it can be.
func wanted(name, text string) string {
	if list := words[name]; list != nil && !slices.Contains(list, text) && (text != "" || !strings.HasPrefix(name, "geo.")) {
		return "one of " + strings.Join(list, ", ")
	}
	if text == "" {
		return ""
	}
	switch name {
	case "geo.country":
		if len(text) != 2 || strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			return "two capital letters, as DE"
		}
	case "ip":
		if ip, err := netip.ParseAddr(text); err != nil || ip.Unmap().String() != text {
			return `one address in its short form; a network is ip startsWith "10."`
		}
	}
	return ""
}

// hostless refuses to ask for the one field that is not in the header of a request that
// a server reads.
func hostless(n *ast.CallNode) error {
	if len(n.Arguments) != 1 || n.Callee.String() != "header" {
		return nil
	}
	if name, ok := n.Arguments[0].(*ast.StringNode); ok && textproto.CanonicalMIMEHeaderKey(name.Value) == "Host" {
		return errors.New("the host that a client names is not known to rules")
	}
	return nil
}
