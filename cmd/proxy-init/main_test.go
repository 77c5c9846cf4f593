package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tryRun runs the program with the environment env. The tests of this package do not reach the
// iptables rules. Tests that change rules are in test/e2e.
func tryRun(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, log bytes.Buffer
	code = run(context.Background(), args, func(name string) string { return env[name] }, &out, &log)
	return code, out.String(), log.String()
}

// TestUsageErrors checks that an error is one line that names the flag or the variable.
func TestUsageErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		env  map[string]string
		want string
	}{
		"port zero":          {args: []string{"--proxy-port=0"}, want: "--proxy-port"},
		"port too high":      {args: []string{"--metadata-port=65536"}, want: "--metadata-port"},
		"port in words":      {env: map[string]string{"PROXY_PORT": "eighty"}, want: `--proxy-port (PROXY_PORT) "eighty": must be between 1 and 65535`},
		"port with a space":  {env: map[string]string{"PROXY_PORT": " 8000"}, want: "PROXY_PORT"},
		"port and a rule":    {env: map[string]string{"PROXY_PORT": "8000 -j ACCEPT"}, want: "PROXY_PORT"},
		"metadata port":      {env: map[string]string{"METADATA_PORT": "0"}, want: "METADATA_PORT"},
		"metadata name":      {env: map[string]string{"METADATA_IP": "metadata.example.test"}, want: "METADATA_IP"},
		"metadata IPv6":      {args: []string{"--metadata-ip=fd00::254"}, want: "--metadata-ip"},
		"metadata loopback":  {env: map[string]string{"METADATA_IP": "127.0.0.1"}, want: "METADATA_IP"},
		"uid by name":        {env: map[string]string{"PROXY_UID": "proxy"}, want: "PROXY_UID"},
		"uid negative":       {args: []string{"--proxy-uid=-1"}, want: "--proxy-uid"},
		"root exempt":        {env: map[string]string{"PROXY_UID": "0"}, want: "PROXY_UID"},
		"root group exempt":  {args: []string{"--proxy-gid=0"}, want: "--proxy-gid"},
		"seal":               {env: map[string]string{"PROXY_SEAL": "yes please"}, want: "PROXY_SEAL"},
		"verify":             {args: []string{"--verify=perhaps"}, want: "--verify"},
		"deny":               {env: map[string]string{"PROXY_DENY": "168.63.129.16:80,nowhere"}, want: "PROXY_DENY"},
		"deny loopback":      {args: []string{"--deny=0.0.0.0/0"}, want: "--deny"},
		"deny metadata":      {args: []string{"--deny=169.254.0.0/16"}, want: "--deny"},
		"deny port":          {args: []string{"--deny=168.63.129.16:0"}, want: "--deny"},
		"backend":            {args: []string{"--backend=nftables"}, want: `--backend (PROXY_BACKEND) "nftables": must be auto, native, nft or legacy`},
		"former name":        {env: map[string]string{"PROXY_IPTABLES_MODE": "nftables"}, want: "--iptables-mode (PROXY_IPTABLES_MODE)"},
		"both names":         {args: []string{"--backend=native"}, env: map[string]string{"PROXY_IPTABLES_MODE": "nft"}, want: "--backend (PROXY_BACKEND) and --iptables-mode (PROXY_IPTABLES_MODE) are two names of one setting: set only the first"},
		"log level":          {env: map[string]string{"PROXY_LOG_LEVEL": "loud"}, want: "PROXY_LOG_LEVEL"},
		"log format":         {args: []string{"--log-format=xml"}, want: "--log-format"},
		"unknown flag":       {args: []string{"--frobnicate"}, want: "--frobnicate"},
		"argument":           {args: []string{"install"}, want: `"install"`},
		"flag without --":    {args: []string{"chek"}, want: `unexpected argument "chek": did you mean --check?`},
		"misspelled flag":    {args: []string{"--proxy-prot=1"}, want: "unknown flag: --proxy-prot (did you mean --proxy-port?)"},
		"two actions":        {args: []string{"--check", "--cleanup"}, want: "--cleanup"},
		"validate and check": {args: []string{"--check", "--validate"}, want: "--check and --validate must not be set together"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := tryRun(t, tt.env, append(tt.args, "--termination-log=")...)
			if code != exitUsage || stdout != "" {
				t.Errorf("exit code %d, stdout %q, want %d and nothing", code, stdout, exitUsage)
			}
			if !strings.Contains(stderr, tt.want) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("stderr %q, want one line with %s", stderr, tt.want)
			}
		})
	}
}

// TestUsageErrorInTerminationLog checks that errors of flags and variables are also written to
// the termination log, whose path may come from a variable although a flag is invalid.
func TestUsageErrorInTerminationLog(t *testing.T) {
	for name, args := range map[string][]string{
		"an unknown flag":     {"--frobnicate"},
		"an invalid value":    {"--proxy-port=0"},
		"the path of a flag":  {"--termination-log=FILE", "--frobnicate"},
		"an invalid variable": nil,
	} {
		file := filepath.Join(t.TempDir(), "termination-log")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		env := map[string]string{"PROXY_TERMINATION_LOG": file}
		switch name {
		case "the path of a flag":
			args[0] = "--termination-log=" + file
			env["PROXY_TERMINATION_LOG"] = file + "-other"
		case "an invalid variable":
			env["PROXY_PORT"] = "eighty"
		}
		code, _, stderr := tryRun(t, env, args...)
		got, err := os.ReadFile(file)
		if code != exitUsage || err != nil || string(got)+"\n" != stderr {
			t.Errorf("%s: exit code %d, termination message %q (%v), want the line of stderr: %q", name, code, got, err, stderr)
		}
	}
}

// TestDryRunIPTables checks the text for an iptables backend.
func TestDryRunIPTables(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		env  map[string]string
		want []string
		not  []string
	}{
		"defaults": {
			want: []string{"-d 169.254.169.254/32 -p tcp -m tcp --dport 80", "--to-ports 8000", "--uid-owner 1501 --gid-owner 1501"},
		},
		"the webhook's environment": {
			env:  map[string]string{"PROXY_PORT": "8123", "METADATA_IP": "100.100.100.200", "METADATA_PORT": "8080", "PROXY_UID": "2000"},
			want: []string{"-d 100.100.100.200/32 -p tcp -m tcp --dport 8080", "--to-ports 8123", "--uid-owner 2000 --gid-owner 1501"},
		},
		"a flag and a variable": {
			args: []string{"--proxy-port=9000", "--seal=false"},
			env:  map[string]string{"PROXY_PORT": "8123", "PROXY_SEAL": "true"},
			want: []string{"--to-ports 9000", "--uid-owner"},
		},
		"an empty variable": {
			env:  map[string]string{"PROXY_PORT": "", "PROXY_SEAL": ""},
			want: []string{"--to-ports 8000", "--uid-owner"},
		},
		"variables of Services named proxy and metadata": {
			env:  map[string]string{"PROXY_PORT": "tcp://10.0.0.7:8080", "METADATA_PORT": "sctp://10.0.0.8:80"},
			want: []string{"--dport 80", "--to-ports 8000"},
		},
		"sealed": {
			args: []string{"--seal"},
			not:  []string{"owner", "DNAT"},
		},
		"sealed as root": {
			env:  map[string]string{"PROXY_SEAL": "1", "PROXY_UID": "0"},
			not:  []string{"owner"},
			want: []string{"--to-ports 8000"},
		},
		"denied": {
			env:  map[string]string{"PROXY_DENY": "168.63.129.16:80, 10.1.0.0/16"},
			want: []string{"-d 168.63.129.16/32 -p tcp -m tcp --dport 80 -j REJECT", "-d 10.1.0.0/16 -j REJECT"},
		},
		"denied by repeated flags": {
			args: []string{"--deny=168.63.129.16:80", "--deny=10.1.0.0/16"},
			env:  map[string]string{"PROXY_DENY": "192.0.2.1"},
			want: []string{"-d 168.63.129.16/32 -p tcp -m tcp --dport 80 -j REJECT", "-d 10.1.0.0/16 -j REJECT"},
			not:  []string{"192.0.2.1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := tryRun(t, tt.env, append(tt.args, "--backend=nft", "--dry-run")...)
			if code != exitOK || stderr != "" {
				t.Fatalf("exit code %d, stderr %q", code, stderr)
			}
			for _, want := range tt.want {
				if !strings.Contains(stdout, want) {
					t.Errorf("no %q in:\n%s", want, stdout)
				}
			}
			for _, not := range tt.not {
				if strings.Contains(stdout, not) {
					t.Errorf("%q in:\n%s", not, stdout)
				}
			}
		})
	}
}

// TestDryRun checks which text --dry-run prints for each name of a backend.
func TestDryRun(t *testing.T) {
	const native, iptables = "table inet imds_proxy", "*filter"
	for name, tt := range map[string]struct {
		args      []string
		env       map[string]string
		want, not string
	}{
		"default":                     {want: native, not: iptables},
		"auto":                        {args: []string{"--backend=auto"}, want: native, not: iptables},
		"native":                      {env: map[string]string{"PROXY_BACKEND": "native"}, want: native, not: iptables},
		"legacy":                      {args: []string{"--backend=legacy"}, want: iptables, not: native},
		"the former flag":             {args: []string{"--iptables-mode=nft"}, want: iptables, not: native},
		"the former variable":         {env: map[string]string{"PROXY_IPTABLES_MODE": "nft"}, want: iptables, not: native},
		"the former name of auto":     {env: map[string]string{"PROXY_IPTABLES_MODE": "auto"}, want: native, not: iptables},
		"both names of one value":     {args: []string{"--backend=nft"}, env: map[string]string{"PROXY_IPTABLES_MODE": "nft"}, want: iptables, not: native},
		"a flag and its own variable": {args: []string{"--backend=nft"}, env: map[string]string{"PROXY_BACKEND": "native"}, want: iptables, not: native},
	} {
		code, stdout, stderr := tryRun(t, tt.env, append(tt.args, "--dry-run")...)
		if code != exitOK || !strings.Contains(stdout, tt.want) || strings.Contains(stdout, tt.not) {
			t.Errorf("%s: exit code %d, %s, want %q and not %q in:\n%s", name, code, stderr, tt.want, tt.not, stdout)
		}
	}
	_, stdout, _ := tryRun(t, map[string]string{"PROXY_SEAL": "true"}, "--deny=10.1.0.0/16,168.63.129.16:80", "--proxy-port=9000", "--dry-run")
	for _, want := range []string{"redirect to :9000", "tcp sport 9000", "elements = { 10.1.0.0/16 }", "elements = { 168.63.129.16 . 80 }"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in:\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "dnat") {
		t.Errorf("an exemption in sealed mode:\n%s", stdout)
	}
}

func TestHelpAndVersion(t *testing.T) {
	code, help, _ := tryRun(t, nil, "--help")
	if code != exitOK {
		t.Errorf("--help: exit code %d", code)
	}
	for variable, flag := range map[string]string{
		"PROXY_PORT": "proxy-port", "METADATA_IP": "metadata-ip", "METADATA_PORT": "metadata-port", "PROXY_UID": "proxy-uid", "PROXY_GID": "proxy-gid",
		"PROXY_SEAL": "seal", "PROXY_DENY": "deny", "PROXY_BACKEND": "backend", "PROXY_IPTABLES_MODE": "iptables-mode", "PROXY_VERIFY": "verify", "PROXY_FORCE": "force",
		"PROXY_LOG_LEVEL": "log-level", "PROXY_LOG_FORMAT": "log-format", "PROXY_TERMINATION_LOG": "termination-log",
	} {
		if line := fmt.Sprintf("  %-22s --%s\n", variable, flag); !strings.Contains(help, line) {
			t.Errorf("--help has no line %q", line)
		}
	}
	for _, flagOnly := range []string{"dry-run", "check", "validate", "cleanup", "version"} {
		if v := variable(flagOnly); v != "" {
			t.Errorf("--%s has the variable %s, which would set it for every run", flagOnly, v)
		}
	}
	code, out, _ := tryRun(t, map[string]string{"PROXY_SEAL": "true"}, "--version")
	if code != exitOK || out != "proxy-init "+version+"\n" {
		t.Errorf("--version: exit code %d, %q", code, out)
	}
}
