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

// settings are the settings of the program in these tests.
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
	set.Bool("hidden", false, "an old name")
	set.Lookup("hidden").Hidden = true
	set.Commands = []string{"check"}
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

// TestParseErrors checks that an error names the flag, its variable, the value, and what the
// value must be.
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
		{nil, []string{"--prot=1"}, "unknown flag: --prot (did you mean --port?)"},
		{nil, []string{"--hidde"}, "unknown flag: --hidde (see prog --help)"},
		{nil, []string{"run"}, `unexpected argument "run": prog takes flags only (see prog --help)`},
		{nil, []string{"prob"}, `unexpected argument "prob": did you mean --probe?`},
		{nil, []string{"probe"}, `unexpected argument "probe": did you mean --probe?`},
		{nil, []string{"chek"}, `unknown command "chek": did you mean "check"?`},
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
	set.Usage = func() { io.WriteString(&out, set.Usages()) }
	if err := set.Parse([]string{"--help"}, nil); !errors.Is(err, pflag.ErrHelp) {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{
		"Flags: --port port port to listen on (default 8000)", "--tenant-id tenant tenant", "--ids IDs client IDs",
		"--mode value on, off or auto (default on)",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("no %q in:\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "hidden") {
		t.Errorf("a hidden flag in:\n%s", &out)
	}
}

// TestGroups checks the order of groups and flags, groups that are continued, and a group
// without flags.
func TestGroups(t *testing.T) {
	set := flagenv.New("prog", nil)
	set.Bool("a", false, "")
	set.Group("Required")
	set.Group("Empty")
	set.Group("Late")
	set.Bool("b", false, "")
	set.Group("More")
	set.Bool("d", false, "")
	set.Bool("c", false, "")
	set.Group("Required")
	set.Bool("e", false, "")
	set.Group("Late")
	set.Bool("f", false, "")
	var got []string
	set.VisitGroups(func(title string, flags *pflag.FlagSet) {
		flags.VisitAll(func(f *pflag.Flag) { title += " " + f.Name })
		got = append(got, title)
	})
	if want := []string{"Flags a", "Required e", "Late b f", "More d c"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	usages := strings.ReplaceAll(set.Usages(), "[=true|false]", "")
	if want := "\nFlags:\n      --a   \n\nRequired:\n      --e   \n\nLate:\n      --b   \n      --f   \n\nMore:\n      --d   \n      --c   \n"; usages != want {
		t.Errorf("got %q, want %q", usages, want)
	}
}

// TestArguments checks a program that accepts arguments and has no variables.
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
