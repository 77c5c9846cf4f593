package attack

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
)

// table has the measurements of the tests, in the order in which they ran.
var table struct {
	mu   sync.Mutex
	rows []string
}

func addRow(columns ...any) {
	row := make([]string, len(columns))
	for i, c := range columns {
		row[i] = fmt.Sprint(c)
	}
	table.mu.Lock()
	defer table.mu.Unlock()
	table.rows = append(table.rows, strings.Join(row, "\t"))
}

func printTable(w io.Writer) {
	table.mu.Lock()
	defer table.mu.Unlock()
	if len(table.rows) == 0 {
		return
	}
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "attack\tpeak\tsockets\tslowest answer\tfailed attempts\tconnections")
	for _, row := range table.rows {
		fmt.Fprintln(out, row)
	}
	out.Flush()
}
