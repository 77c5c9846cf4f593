package flagenv_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
)

// settings are those of a program of this test.
type settings struct {
	port    uint16
	tenant  azure.Tenant
	ids     []azure.ClientID
	mode    string
	wait    time.Duration
	verbose bool
	probe   bool
	text    string
}

func newSet(s *settings) *flagenv.Set {
	set := flagenv.New("prog", flagenv.Prefix("PROG_", "probe"))
	s.port, s.mode = 8000, "on"
	flagenv.Var(set.FlagSet, &s.port, "port", azure.ParsePort, "`port` to listen on")
	flagenv.Var(set.FlagSet, &s.tenant, "tenant-id", flagenv.Optional(azure.ParseTenant), "`tenant`")
	flagenv.List(set.FlagSet, &s.ids, "ids", azure.ParseClientID, "client `IDs`")
	flagenv.Var(set.FlagSet, &s.mode, "mode", flagenv.OneOf("on", "off", "auto"), "on, off or auto")
	set.DurationVar(&s.wait, "wait", time.Second, "how long")
	set.BoolVar(&s.verbose, "verbose", false, "more")
	set.BoolVar(&s.probe, "probe", false, "probe")
	set.StringVar(&s.text, "text", "", "any text")
	return set
}

func parse(env map[string]string, args ...string) (settings, error) {
	var s settings
	err := newSet(&s).Parse(args, func(name string) string { return env[name] })
	return s, err
}

const (
	one = "11111111-1111-4111-8111-111111111111"
	two = "22222222-2222-4222-8222-222222222222"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		name string
		env  map[string]string
		args []string
		want func(settings) bool
	}{
		{"defaults", nil, nil, func(s settings) bool {
			return s.port == 8000 && s.mode == "on" && s.wait == time.Second && s.ids == nil
		}},
		{"variable over default", map[string]string{"PROG_PORT": "8001"}, nil, func(s settings) bool { return s.port == 8001 }},
		{"flag over variable", map[string]string{"PROG_PORT": "8001"}, []string{"--port=8002"}, func(s settings) bool { return s.port == 8002 }},
		{"flag over a wrong variable", map[string]string{"PROG_PORT": "http"}, []string{"--port=8002"}, func(s settings) bool { return s.port == 8002 }},
		{"empty variable", map[string]string{"PROG_PORT": ""}, nil, func(s settings) bool { return s.port == 8000 }},
		{"link to a Service", map[string]string{"PROG_PORT": "tcp://10.0.0.7:80", "PROG_MODE": "udp://10.0.0.7:80", "PROG_TENANT_ID": "sctp://10.0.0.7:80"}, nil,
			func(s settings) bool { return s.port == 8000 && s.mode == "on" && s.tenant == "" }},
		{"no variable", map[string]string{"PROG_PROBE": "true", "PROG_HELP": "true", "PROG_VERSION": "true"}, nil, func(s settings) bool { return !s.probe }},
		{"empty and optional", nil, []string{"--tenant-id="}, func(s settings) bool { return s.tenant == "" }},
		{"list", map[string]string{"PROG_IDS": one + " , " + two + "\n"}, nil, func(s settings) bool { return slices.Equal(s.ids, []azure.ClientID{one, two}) }},
		{"list given twice", nil, []string{"--ids=" + one, "--ids", two}, func(s settings) bool { return slices.Equal(s.ids, []azure.ClientID{one, two}) }},
		{"list over variable", map[string]string{"PROG_IDS": two}, []string{"--ids=" + one}, func(s settings) bool { return slices.Equal(s.ids, []azure.ClientID{one}) }},
		{"empty list", nil, []string{"--ids="}, func(s settings) bool { return len(s.ids) == 0 }},
		{"one line", map[string]string{"PROG_TEXT": "a\r\n"}, nil, func(s settings) bool { return s.text == "a" }},
		{"boolean", map[string]string{"PROG_VERBOSE": "true"}, nil, func(s settings) bool { return s.verbose }},
		{"boolean without value", nil, []string{"--verbose"}, func(s settings) bool { return s.verbose }},
	} {
		if s, err := parse(test.env, test.args...); err != nil || !test.want(s) {
			t.Errorf("%s: got %+v, %v", test.name, s, err)
		}
	}
}

// TestParseErrors: the flag and its variable, the value, and what it must be.
func TestParseErrors(t *testing.T) {
	for _, test := range []struct {
		env  map[string]string
		args []string
		want string
	}{
		{nil, []string{"--port=70000"}, `--port (PROG_PORT) "70000": must be between 1 and 65535`},
		{map[string]string{"PROG_PORT": "70000"}, nil, `--port (PROG_PORT) "70000": must be between 1 and 65535`},
		{nil, []string{"--port="}, `--port (PROG_PORT) "": must be between 1 and 65535`},
		{nil, []string{"--mode=perhaps"}, `--mode (PROG_MODE) "perhaps": must be on, off or auto`},
		{nil, []string{"--wait=soon"}, `--wait (PROG_WAIT) "soon": must be a duration, such as 10s`},
		{map[string]string{"PROG_VERBOSE": "?"}, nil, `--verbose (PROG_VERBOSE) "?": must be true or false`},
		{nil, []string{"--probe=?"}, `--probe "?": must be true or false`},
		{nil, []string{"--tenant-id=x"}, `--tenant-id (PROG_TENANT_ID) "x": must be a tenant's ID (a GUID) or its domain, such as tenant.onmicrosoft.com`},
		{nil, []string{"--ids=" + one + ",app"}, `--ids (PROG_IDS) "app": must be a GUID: the application (client) ID, not a name or a resource ID`},
		{nil, []string{"--ids=" + one + ","}, `--ids (PROG_IDS) "": must be a GUID: the application (client) ID, not a name or a resource ID`},
		{map[string]string{"PROG_IDS": one + "\n" + two + "\n"}, nil,
			`--ids (PROG_IDS) "` + one + `\n` + two + `\n": must be one line, with commas between its items`},
		{map[string]string{"PROG_TEXT": "a\nb"}, nil, `--text (PROG_TEXT) "a\nb": must be one line`},
		{nil, []string{"--port"}, "flag needs an argument: --port (see prog --help)"},
		{nil, []string{"--frobnicate"}, "unknown flag: --frobnicate (see prog --help)"},
		{nil, []string{"run"}, `unexpected argument "run": prog takes flags only (see prog --help)`},
	} {
		if _, err := parse(test.env, test.args...); err == nil || err.Error() != test.want {
			t.Errorf("%v %q: got %v, want %s", test.env, test.args, err, test.want)
		}
	}
}

func TestHelp(t *testing.T) {
	var s settings
	var out strings.Builder
	set := newSet(&s)
	set.Usage = func() { io.WriteString(&out, set.FlagUsages()) }
	if err := set.Parse([]string{"--help"}, nil); !errors.Is(err, pflag.ErrHelp) {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{
		"--port port port to listen on (default 8000)", "--tenant-id tenant tenant", "--ids IDs client IDs",
		"--mode value on, off or auto (default on)",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("no %q in:\n%s", want, &out)
		}
	}
}

// TestNamed: errors about flags get the names of the program that reads them.
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
		{other, "other", "other"},
	} {
		if got := set.Named(test.err); test.err.Error() != test.plain || got.Error() != test.want {
			t.Errorf("got %q, %q, want %q, %q", test.err, got, test.plain, test.want)
		}
	}
	if err := set.Named(flagenv.Required(nil, "")); err != nil {
		t.Errorf("nothing is missing: got %v", err)
	}
}

// TestArguments: a program that takes arguments, and has no variables.
func TestArguments(t *testing.T) {
	set := flagenv.New("prog", nil)
	set.Arguments = true
	port := uint16(1)
	flagenv.Var(set.FlagSet, &port, "port", azure.ParsePort, "port")
	if err := set.Parse([]string{"run", "--port=2", "file"}, nil); err != nil || set.NArg() != 2 || port != 2 {
		t.Errorf("got %v, %q, %d", err, set.Args(), port)
	}
	if err := set.Parse([]string{"--port=0"}, nil); err == nil || err.Error() != `--port "0": must be between 1 and 65535` {
		t.Errorf("got %v", err)
	}
}
