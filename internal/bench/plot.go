package bench

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/load"
)

// chart is a plot of lines over a logarithmic abscissa, written as SVG.
type chart struct {
	title, x, y    string
	xTicks, yTicks []float64 // the first and the last are the axis's ends
	logarithmic    bool      // the ordinate too
	lines          []plotLine
}

// plotLine is one system's.
type plotLine struct {
	name   string
	strong bool
	points [][2]float64
}

// Sizes of a chart, in pixels.
const (
	chartWidth  = 760
	chartHeight = 420
	plotLeft    = 64.0
	plotRight   = 560.0
	plotTop     = 44.0
	plotBottom  = 364.0
)

// lineColors tell systems apart, also for those who see few colours (Okabe and Ito's
// palette); a second round is dashed.
func lineColors() []string {
	return []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777"}
}

// svg draws the chart. The same chart is the same bytes.
func (c *chart) svg() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="13">`+"\n", chartWidth, chartHeight, chartWidth, chartHeight)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", chartWidth, chartHeight)
	fmt.Fprintf(&b, `<text x="%.0f" y="24" font-size="16" font-weight="bold">%s</text>`+"\n", plotLeft, html.EscapeString(c.title))
	for _, t := range c.xTicks {
		x := c.across(t)
		fmt.Fprintf(&b, `<path d="M%.1f %.1fV%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="middle">%gx</text>`+"\n", x, plotTop, plotBottom, x, plotBottom+18, t)
	}
	for _, t := range c.yTicks {
		y := c.up(t)
		fmt.Fprintf(&b, `<path d="M%.1f %.1fH%.1f" stroke="#ddd"/><text x="%.1f" y="%.1f" text-anchor="end">%g</text>`+"\n", plotLeft, y, plotRight, plotLeft-8, y+4, t)
	}
	fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", (plotLeft+plotRight)/2, chartHeight-12, html.EscapeString(c.x))
	fmt.Fprintf(&b, `<text transform="translate(18 %.1f) rotate(-90)" text-anchor="middle">%s</text>`+"\n", (plotTop+plotBottom)/2, html.EscapeString(c.y))
	for i, l := range c.lines {
		c.line(&b, i, l)
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// line draws one line with its marks and its place in the legend.
func (c *chart) line(b *strings.Builder, i int, l plotLine) {
	colors := lineColors()
	color, width, dash := colors[i%len(colors)], 1.6, ""
	if i >= len(colors) {
		dash = ` stroke-dasharray="6 4"`
	}
	if l.strong {
		color, width = "#000", 3
	}
	var path strings.Builder
	for n, p := range l.points {
		fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(n, 1)], c.across(p[0]), c.up(p[1]))
	}
	if len(l.points) > 0 {
		fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="%g"%s/>`+"\n", &path, color, width, dash)
	}
	for _, p := range l.points {
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", c.across(p[0]), c.up(p[1]), color)
	}
	y := plotTop + 10 + 22*float64(i)
	fmt.Fprintf(b, `<path d="M%.1f %.1fh24" stroke="%s" stroke-width="%g"%s/><text x="%.1f" y="%.1f">%s</text>`+"\n",
		plotRight+16, y, color, width, dash, plotRight+46, y+4, html.EscapeString(l.name))
}

// across is the place of a value on the abscissa.
func (c *chart) across(v float64) float64 {
	return plotLeft + (plotRight-plotLeft)*share(math.Log(v), math.Log(c.xTicks[0]), math.Log(c.xTicks[len(c.xTicks)-1]))
}

// up is the place of a value on the ordinate; what lies outside is drawn at its end.
func (c *chart) up(v float64) float64 {
	low, high := c.yTicks[0], c.yTicks[len(c.yTicks)-1]
	if c.logarithmic {
		v, low, high = math.Log(max(v, low)), math.Log(low), math.Log(high)
	}
	return plotBottom - (plotBottom-plotTop)*share(v, low, high)
}

// share is where a value lies between two others, from 0 to 1.
func share(v, low, high float64) float64 {
	if high <= low {
		return 0.5
	}
	return min(1, max(0, (v-low)/(high-low)))
}

// overloadCharts are the plots of a comparison by file name: the share of the
// optimum, and the first tokens of vip.
func overloadCharts(systems []load.System) map[string]*chart {
	var loads []float64
	var names []string
	for _, s := range systems {
		if len(loads) == 0 || s.Load > loads[len(loads)-1] {
			loads = append(loads, s.Load)
		}
		if !slices.Contains(names, s.Name) {
			names = append(names, s.Name)
		}
	}
	good := &chart{title: "Work done within the objectives, share of the optimum", x: "offered load / capacity", y: "goodput / optimum", xTicks: loads, yTicks: []float64{0, 0.2, 0.4, 0.6, 0.8, 1}}
	vip := &chart{
		title: "Time to first token of vip, p99 (bound: 1 s)", x: "offered load / capacity", y: "seconds", xTicks: loads,
		yTicks: []float64{0.1, 0.2, 0.5, 1, 2, 5, 10}, logarithmic: true,
	}
	for _, name := range names {
		a, b := plotLine{name: name, strong: name == SystemSpillway}, plotLine{name: name, strong: name == SystemSpillway}
		for _, x := range loads {
			s := find(systems, name, x)
			if s == nil {
				continue
			}
			if s.GoodputRatio != nil {
				a.points = append(a.points, [2]float64{x, *s.GoodputRatio})
			}
			if t := s.Classes[inference.VIP.String()].TTFT; t != nil {
				b.points = append(b.points, [2]float64{x, t.P99 / 1000})
			}
		}
		good.lines, vip.lines = append(good.lines, a), append(vip.lines, b)
	}
	return map[string]*chart{"goodput.svg": good, "vip-ttft.svg": vip}
}
