package main

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

// tryRun runs the program with the environment env, for errors and texts.
func tryRun(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, log bytes.Buffer
	code = run(t.Context(), args, func(name string) string { return env[name] }, &out, &log)
	return code, out.String(), log.String()
}

// TestUsageErrors: an error is one line that names the flag or the variable.
func TestUsageErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		env  map[string]string
		want string
	}{
		"no command":         {nil, nil, "a command is required: install or uninstall"},
		"misspelt command":   {[]string{"instal"}, nil, "install"},
		"unknown command":    {[]string{"ADD"}, nil, "ADD"},
		"two commands":       {[]string{"install", "uninstall"}, nil, `unexpected argument "uninstall"`},
		"unknown flag":       {[]string{"install", "--frobnicate"}, nil, "--frobnicate"},
		"misspelt flag":      {[]string{"install", "--bin-di=/x"}, nil, "did you mean --bin-dir?"},
		"relative directory": {[]string{"install", "--bin-dir=opt/cni/bin"}, nil, `--bin-dir (IMDS_CNI_BIN_DIR) "opt/cni/bin": must be the absolute path`},
		"path with dots":     {[]string{"install"}, map[string]string{"IMDS_CNI_CONF_DIR": "/etc/../root"}, "--conf-dir (IMDS_CNI_CONF_DIR)"},
		"the root":           {[]string{"install", "--conf-dir=/"}, nil, "--conf-dir"},
		"no directory":       {[]string{"install", "--conf-dir="}, nil, "--conf-dir"},
		"one directory":      {[]string{"install", "--conf-dir=/a", "--bin-dir=/a"}, nil, "must be different directories"},
		"root exempt":        {[]string{"install", "--exempt-uids=1501,0"}, nil, `"0": must be a user ID other than 0`},
		"user by name":       {[]string{"install"}, map[string]string{"IMDS_CNI_EXEMPT_UIDS": "proxy"}, "--exempt-uids (IMDS_CNI_EXEMPT_UIDS)"},
		"user too high":      {[]string{"install", "--exempt-uids=2147483648"}, nil, "--exempt-uids"},
		"none and one":       {[]string{"install", "--exempt-uids=none,1501"}, nil, `"none": must be a user ID other than 0, or the whole value`},
		"no user":            {[]string{"install", "--exempt-uids="}, nil, "--exempt-uids"},
		"taint with effect":  {[]string{"install", "--node=n", "--remove-taint=example.test/a=true:NoSchedule"}, nil, `must be the key of a taint`},
		"taint, no node":     {[]string{"install"}, map[string]string{"IMDS_CNI_REMOVE_TAINT": "a"}, "--node (IMDS_CNI_NODE) is required with --remove-taint"},
		"taint, uninstall":   {[]string{"uninstall", "--node=n", "--remove-taint=a"}, nil, "is only for install"},
		"address":            {[]string{"install", "--health-address=18501"}, nil, "--health-address"},
		"install, binary":    {[]string{"install", "--remove-binary"}, nil, "--remove-binary (IMDS_CNI_REMOVE_BINARY) is only for uninstall"},
		"install, stay":      {[]string{"install"}, map[string]string{"IMDS_CNI_STAY": "true"}, "--stay (IMDS_CNI_STAY) is only for uninstall"},
		"log level":          {[]string{"uninstall", "--log-level=loud"}, nil, "--log-level"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := tryRun(t, tt.env, tt.args...)
			if code != exitUsage || stdout != "" {
				t.Errorf("exit code %d, stdout %q, want %d and nothing", code, stdout, exitUsage)
			}
			if !strings.HasPrefix(stderr, "imds-cni: ") || !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("stderr %q, want one line with %s", stderr, tt.want)
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	code, help, _ := tryRun(t, nil, "--help")
	if code != exitOK || !strings.HasPrefix(help, "Usage: imds-cni install [flags]\n") {
		t.Errorf("--help: exit code %d, %q", code, help)
	}
	if code, out, _ := tryRun(t, nil, "--version"); code != exitOK || out != "imds-cni "+version+"\n" {
		t.Errorf("--version: exit code %d, %q", code, out)
	}
}

func TestExemptUIDs(t *testing.T) {
	for text, want := range map[string]*[]uint32{
		"any": nil, "none": {}, "1501": {1501}, "1501, 2000": {1501, 2000}, "2147483647": {1<<31 - 1},
	} {
		got, err := parseExemptUIDs(text)
		if err != nil || !reflect.DeepEqual(got.list, want) {
			t.Errorf("%s: got %v, %v, want %v", text, got, err, want)
		}
		if short := strings.ReplaceAll(text, " ", ""); got.String() != short {
			t.Errorf("%s: got the text %s", text, got)
		}
	}
	o, err := parse([]string{commandInstall}, func(string) string { return "" })
	if err != nil || o.exempt.String() != "1501" {
		t.Errorf("the default is %s (%v), want the proxy's user", o.exempt, err)
	}
}
