package metrics

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// maxSeries bounds the series of one counter. Labels come from short lists, and
// this is a wall for the day when one does not: what is beyond is counted as other.
const maxSeries = 128

const other = "other"

// values are those of a counter's labels, in order; unused ones are empty.
type values [2]string

// counter is a counter with up to two labels. A series appears with its first
// event, or at the start where it is worth seeing at zero.
type counter struct {
	name, help string
	labels     []string

	mu     sync.RWMutex // guards the map, not the numbers
	series map[values]*atomic.Uint64
}

func newCounter(name, help string, labels []string, atZero ...values) *counter {
	c := &counter{name: prefix + name, help: help, labels: labels, series: make(map[values]*atomic.Uint64)}
	for _, v := range atZero {
		c.series[v] = new(atomic.Uint64)
	}
	return c
}

// add counts one. For a series that is there it takes a read lock and allocates
// nothing: a cached token is answered in microseconds.
func (c *counter) add(v values) {
	c.mu.RLock()
	n := c.series[v]
	c.mu.RUnlock()
	if n == nil {
		n = c.create(v)
	}
	n.Add(1)
}

func (c *counter) create(v values) *atomic.Uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.series) >= maxSeries {
		v = values{}
		for i := range c.labels {
			v[i] = other
		}
	}
	n := c.series[v]
	if n == nil {
		n = new(atomic.Uint64)
		c.series[v] = n
	}
	return n
}

// appendTo writes the series in a fixed order, so that a person can compare two
// scrapes.
func (c *counter) appendTo(b []byte) []byte {
	b = appendHead(b, c.name, c.help, "counter")
	c.mu.RLock()
	defer c.mu.RUnlock()
	sorted := slices.SortedFunc(maps.Keys(c.series), func(x, y values) int {
		return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1]))
	})
	for _, v := range sorted {
		b = appendName(b, c.name, c.labels, v[:len(c.labels)])
		b = strconv.AppendUint(b, c.series[v].Load(), 10)
		b = append(b, '\n')
	}
	return b
}

// histogram counts durations by upper bound. Its buckets are as Prometheus has
// them (le); its counts are of one moment only as far as no request ends while
// they are read.
type histogram struct {
	bounds []time.Duration // ascending
	counts []atomic.Uint64 // one more than bounds: what is above the last
	sum    atomic.Int64    // nanoseconds: 292 years of them
}

func newHistogram(bounds []time.Duration) *histogram {
	return &histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

func (h *histogram) observe(took time.Duration) {
	took = max(took, 0) // a clock that was set back
	i := 0
	for i < len(h.bounds) && took > h.bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(took))
}

func (h *histogram) empty() bool {
	for i := range h.counts {
		if h.counts[i].Load() > 0 {
			return false
		}
	}
	return true
}

// appendTo writes the series of one histogram, with the label given if it has a
// name. The family's head is written before.
func (h *histogram) appendTo(b []byte, name, label, value string) []byte {
	names, given := []string{"le"}, []string{""}
	if label != "" {
		names, given = []string{label, "le"}, []string{value, ""}
	}
	le := len(given) - 1
	total := uint64(0)
	for i := range h.counts {
		total += h.counts[i].Load()
		given[le] = "+Inf"
		if i < len(h.bounds) {
			given[le] = formatFloat(h.bounds[i].Seconds())
		}
		b = appendName(b, name+"_bucket", names, given)
		b = strconv.AppendUint(b, total, 10)
		b = append(b, '\n')
	}
	b = appendName(b, name+"_sum", names[:le], given[:le])
	b = append(b, formatFloat(time.Duration(h.sum.Load()).Seconds())...)
	b = append(b, '\n')
	b = appendName(b, name+"_count", names[:le], given[:le])
	b = strconv.AppendUint(b, total, 10)
	return append(b, '\n')
}

func formatFloat(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// appendHead begins a family: what it means, and of what type it is.
func appendHead(b []byte, name, help, kind string) []byte {
	b = append(b, "# HELP "+name+" "+help+"\n"...)
	return append(b, "# TYPE "+name+" "+kind+"\n"...)
}

// appendName writes what stands before a sample's value.
func appendName(b []byte, name string, labels, given []string) []byte {
	b = append(b, name...)
	for i, label := range labels {
		separator := byte(',')
		if i == 0 {
			separator = '{'
		}
		b = append(b, separator)
		b = append(b, label...)
		b = append(b, `="`...)
		b = appendEscaped(b, given[i])
		b = append(b, '"')
	}
	if len(labels) > 0 {
		b = append(b, '}')
	}
	return append(b, ' ')
}

// appendEscaped writes a label's value as the format asks: a backslash before
// itself and the quote, \n for a line feed.
func appendEscaped(b []byte, s string) []byte {
	for i := range len(s) {
		switch s[i] {
		case '\\', '"':
			b = append(b, '\\', s[i])
		case '\n':
			b = append(b, `\n`...)
		default:
			b = append(b, s[i])
		}
	}
	return b
}
