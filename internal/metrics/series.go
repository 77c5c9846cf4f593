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

// maxSeries bounds the series of one counter, in case a bug causes label values that are
// not from a short list. Label values beyond the bound are counted as other.
const maxSeries = 128

const other = "other"

// values are the values of a counter's labels, in order. Unused ones are empty.
type values [2]string

// counter is a counter with up to two labels. A series appears with its first event, except
// that the series atZero of newCounter appear at once, with the value zero.
type counter struct {
	name, help string
	labels     []string

	mu     sync.RWMutex // guards the map; the numbers are atomic
	series map[values]*atomic.Uint64
}

func newCounter(name, help string, labels []string, atZero ...values) *counter {
	c := &counter{name: prefix + name, help: help, labels: labels, series: make(map[values]*atomic.Uint64)}
	for _, v := range atZero {
		c.series[v] = new(atomic.Uint64)
	}
	return c
}

// add counts one event. For an existing series it takes only a read lock and does not
// allocate, because a cached token is answered in microseconds.
func (c *counter) add(v values) {
	c.mu.RLock()
	n := c.series[v]
	c.mu.RUnlock()
	if n == nil {
		n = c.create(v)
	}
	n.Add(1)
}

// create returns the number of a new series, or of the series other at the bound.
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

// appendTo appends the series in a fixed order, so that two scrapes can be compared.
func (c *counter) appendTo(b []byte) []byte {
	b = appendHead(b, c.name, c.help, "counter")
	c.mu.RLock()
	defer c.mu.RUnlock()
	sorted := slices.SortedFunc(maps.Keys(c.series), func(x, y values) int {
		return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1]))
	})
	for _, v := range sorted {
		b = appendCount(b, c.name, c.labels, v[:len(c.labels)], c.series[v].Load())
	}
	return b
}

// histogram counts durations by upper bound, as the label le of Prometheus. A request
// that ends during a scrape may be in some of its numbers and not in others.
type histogram struct {
	bounds []time.Duration // ascending
	counts []atomic.Uint64 // one for each bound, and one for what is above the last bound
	sum    atomic.Int64    // in nanoseconds: enough for 292 years
}

func newHistogram(bounds []time.Duration) *histogram {
	return &histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

func (h *histogram) observe(took time.Duration) {
	took = max(took, 0)                         // negative if the clock was set back
	i, _ := slices.BinarySearch(h.bounds, took) // the first bound that is not below
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

// appendTo appends the series of one histogram. If label is not empty, each series has
// this label with the value. The caller has appended the head of the family.
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
		b = appendCount(b, name+"_bucket", names, given, total)
	}
	b = appendName(b, name+"_sum", names[:le], given[:le])
	b = append(b, formatFloat(time.Duration(h.sum.Load()).Seconds())...)
	b = append(b, '\n')
	return appendCount(b, name+"_count", names[:le], given[:le], total)
}

func formatFloat(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// appendHead appends the head of a metric family: its help text and its type.
func appendHead(b []byte, name, help, kind string) []byte {
	b = append(b, "# HELP "+name+" "+help+"\n"...)
	return append(b, "# TYPE "+name+" "+kind+"\n"...)
}

// appendCount appends a sample whose value is a count.
func appendCount(b []byte, name string, labels, given []string, count uint64) []byte {
	b = appendName(b, name, labels, given)
	b = strconv.AppendUint(b, count, 10)
	return append(b, '\n')
}

// appendName appends a sample's name with its labels, and the blank before the value.
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

// appendEscaped appends a label's value, escaped as the format requires: a backslash
// before backslash and quote, and \n for a line feed.
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
