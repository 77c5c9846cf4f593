package imds

import (
	"testing"
	"time"
)

func TestDateIsThatOfTheSecond(t *testing.T) {
	var d dates
	zone := time.FixedZone("elsewhere", 3600)
	now := time.Date(2026, 3, 1, 11, 0, 0, 0, zone)
	for _, test := range []struct {
		after time.Duration
		want  string
	}{
		{0, "Sun, 01 Mar 2026 10:00:00 GMT"},
		{time.Second - 1, "Sun, 01 Mar 2026 10:00:00 GMT"},
		{time.Second, "Sun, 01 Mar 2026 10:00:01 GMT"},
		{-time.Hour, "Sun, 01 Mar 2026 09:00:00 GMT"}, // a clock that was set back
	} {
		if got := d.at(now.Add(test.after)); len(got) != 1 || got[0] != test.want {
			t.Errorf("after %s: got %q, want %q", test.after, got, test.want)
		}
	}
}
