package flagenv_test

import (
	"testing"

	"imds-oidc-proxy/internal/flagenv"
)

func TestNearest(t *testing.T) {
	for word, want := range map[string]string{
		"inject": "inject", "injct": "inject", "ijnect": "inject", "injects": "inject", "eject": "inject", "unject": "inject",
		"uninjct": "uninject", "hlep": "help", "hel": "help", "verison": "version",
		"": "", "x": "", "abc": "", "run": "", "app.yaml": "", "injection": "",
	} {
		if got := flagenv.Nearest(word, "inject", "uninject", "help", "version"); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}

func TestUnknownCommand(t *testing.T) {
	for word, want := range map[string]string{
		"injct": `unknown command "injct": did you mean "inject"?`,
		"run":   `unknown command "run": must be inject, uninject or help`,
	} {
		if got := flagenv.UnknownCommand(word, "inject", "uninject", "help"); got.Error() != want {
			t.Errorf("got %v, want %s", got, want)
		}
	}
}
