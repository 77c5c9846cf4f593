package injectflags

import (
	"testing"

	"github.com/spf13/pflag"
)

// TestEveryFieldHasAFlag: what internal/inject complains about is named as its flag.
func TestEveryFieldHasAFlag(t *testing.T) {
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(Flags).AddFlags(flags)
	for _, f := range fieldFlags {
		if flags.Lookup(f.flag) == nil {
			t.Errorf("%s: there is no --%s", f.field, f.flag)
		}
	}
}
