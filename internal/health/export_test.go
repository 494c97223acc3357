package health

import "io"

// Sum adds up the series of one metric with the given labels.
func Sum(body io.Reader, name string, labels map[string]string) (sum float64, series int, err error) {
	totals, err := scan(body, []selector{{name: name, labels: labels}})
	if err != nil {
		return 0, 0, err
	}
	return totals[0].sum, totals[0].series, nil
}

// Load reads the load of an engine.
func Load(body io.Reader, kind string) (int64, error) {
	r, err := load(body, kind)
	return r.requests, err
}

// Preempted exposes what an exposition says of preemptions.
func Preempted(body io.Reader, kind string) (int64, error) {
	r, err := load(body, kind)
	return r.preempted, err
}

// Records counts the instances that the monitor remembers.
func (m *Monitor) Records() int {
	n := 0
	m.records.Range(func(any, any) bool { n++; return true })
	return n
}
