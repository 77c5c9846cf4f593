package imds

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestAmbiguousQueries: a query that two parsers could read differently is rejected.
func TestAmbiguousQueries(t *testing.T) {
	var most []string
	for i := range maxParams {
		most = append(most, fmt.Sprintf("p%d=%d", i, i))
	}
	for query, want := range map[string]error{
		"a=b&c=d":                           nil,
		"&a=b&&":                            nil,
		"a":                                 nil,
		";a=b":                              errMalformedQuery,
		"a=b;c=d":                           errMalformedQuery,
		"a=b;":                              errMalformedQuery,
		"a=%zz":                             errMalformedQuery,
		"%zz=b":                             errMalformedQuery,
		"a=b&A=c":                           errDuplicateParam,
		"a=b&%61=c":                         errDuplicateParam,
		strings.Join(most, "&"):             nil,
		strings.Join(most, "&") + "&last=1": errMalformedQuery,
	} {
		if _, err := appendParams(nil, query); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", query, err, want)
		}
	}
}
