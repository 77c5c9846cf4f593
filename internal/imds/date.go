package imds

import (
	"net/http"
	"sync/atomic"
	"time"
)

// dates makes the Date header once for each second, which is all that it tells.
// net/http makes it anew for each answer that has none.
type dates struct{ last atomic.Pointer[date] }

type date struct {
	second int64
	header []string // never changed
}

func (d *dates) at(now time.Time) []string {
	second := now.Unix()
	if last := d.last.Load(); last != nil && last.second == second {
		return last.header
	}
	made := &date{second, []string{now.UTC().Format(http.TimeFormat)}}
	d.last.Store(made)
	return made.header
}
