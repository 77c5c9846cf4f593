package imds

import (
	"fmt"
	"strings"
	"testing"
)

func TestAppendParams(t *testing.T) {
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "&p%d=%d", i, i)
		}
		return b.String()
	}
	for _, test := range []struct {
		query string
		want  string // as encodeParams writes it
		err   error
	}{
		{"", "", nil},
		{"&&", "", nil},
		{"a=b", "a=b", nil},
		{"a", "a=", nil},
		{"=b", "=b", nil},
		{"a=b=c", "a=b%3Dc", nil},
		{"&a=1&&b=2&", "a=1&b=2", nil},
		{"a=b+c", "a=b%20c", nil},
		{"a=b%20c%2B", "a=b%20c%2B", nil},
		{"a=%00%ff", "a=%00%FF", nil},
		{"a=b;c=d", "", errMalformedQuery},
		{"a=%3b", "a=%3B", nil},
		{"a=%zz", "", errMalformedQuery},
		{"%a=b", "", errMalformedQuery},
		{"a=1&a=2", "", errDuplicateParam},
		{"a=1&A=1", "", errDuplicateParam},
		{"a=1&%61=1", "", errDuplicateParam},
		{"a=1&b=2&c=3&a=", "", errDuplicateParam},
		{"k=1&\u212a=2", "k=1&%E2%84%AA=2", nil},
		{many(maxParams), many(maxParams)[1:], nil},
		{many(maxParams + 1), "", errMalformedQuery},
	} {
		params, err := appendParams(nil, test.query)
		if got := encodeParams(params); got != test.want || err != test.err {
			t.Errorf("%.100q: got %.100q, %v, want %.100q, %v", test.query, got, err, test.want, test.err)
		}
	}
}
