package flagenv_test

import (
	"errors"
	"testing"

	"imds-oidc-proxy/internal/flagenv"
)

// TestNamed checks that errors about flags get the variables of the program that parses them.
func TestNamed(t *testing.T) {
	var s settings
	set := newSet(&s)
	other := errors.New("other")
	for _, test := range []struct {
		err         error
		plain, want string
	}{
		{flagenv.Errorf("wait", "%q: must be more than zero", "0s"), `--wait "0s": must be more than zero`, `--wait (PROG_WAIT) "0s": must be more than zero`},
		{flagenv.Required([]string{"mode"}, ", for example on"), "--mode is required, for example on", "--mode (PROG_MODE) is required, for example on"},
		{flagenv.Required([]string{"mode", "probe"}, ""), "--mode and --probe are required", "--mode (PROG_MODE) and --probe are required"},
		{flagenv.Required([]string{"mode", "probe", "wait"}, ""), "--mode, --probe and --wait are required", "--mode (PROG_MODE), --probe and --wait (PROG_WAIT) are required"},
		{flagenv.Join(nil, flagenv.Required([]string{"mode"}, ""), other, flagenv.Required([]string{"wait"}, " here")),
			"--mode is required; other; --wait is required here", "--mode (PROG_MODE) is required; other; --wait (PROG_WAIT) is required here"},
		{flagenv.Join(flagenv.Required([]string{"mode"}, ""), nil), "--mode is required", "--mode (PROG_MODE) is required"},
		{other, "other", "other"},
	} {
		if got := set.Named(test.err); test.err.Error() != test.plain || got.Error() != test.want {
			t.Errorf("got %q, %q, want %q, %q", test.err, got, test.plain, test.want)
		}
	}
	if err := set.Named(flagenv.Required(nil, "")); err != nil {
		t.Errorf("nothing is missing: got %v", err)
	}
	if err := flagenv.Join(nil, nil); err != nil {
		t.Errorf("no error: got %v", err)
	}
}
