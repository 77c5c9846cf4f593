package main

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/tokens"
)

// podEnvironment returns the variables that the webhook injects, and more.
func podEnvironment(more map[string]string) func(string) string {
	environment := map[string]string{
		"AZURE_TENANT_ID":            "11111111-2222-4333-8444-555555555555",
		"AZURE_CLIENT_ID":            "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10",
		"AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/wi/token/azure-identity-token",
	}
	for name, value := range more {
		environment[name] = value
	}
	return func(name string) string { return environment[name] }
}

func TestDefaults(t *testing.T) {
	cfg, err := parseConfig(nil, podEnvironment(nil), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.port != 8000 || cfg.log != (logging.Config{Level: "info", Format: "json"}) || cfg.imdsPassthrough != "auto" || cfg.imdsAddress != "http://169.254.169.254" {
		t.Errorf("got %+v, want the documented defaults", cfg)
	}
}

// TestEnvironmentVariables: a flag takes precedence over its environment variable, and the
// variable over the default. An empty variable counts as not set.
func TestEnvironmentVariables(t *testing.T) {
	for _, test := range []struct {
		name        string
		args        []string
		environment map[string]string
		check       func(config) bool
	}{
		{"variable", nil, map[string]string{"PROXY_PORT": "8001"}, func(c config) bool { return c.port == 8001 }},
		{"flag over variable", []string{"--proxy-port=8002"}, map[string]string{"PROXY_PORT": "8001"}, func(c config) bool { return c.port == 8002 }},
		{"variable of a Service named proxy is ignored", nil, map[string]string{"PROXY_PORT": "sctp://10.0.0.7:80"}, func(c config) bool { return c.port == 8000 }},
		// proxy-init reads the port in the same way.
		{"port with leading zero", []string{"--proxy-port=010000"}, nil, func(c config) bool { return c.port == 10000 }},
		{"empty variable", nil, map[string]string{"PROXY_PORT": ""}, func(c config) bool { return c.port == 8000 }},
		{"list", nil, map[string]string{"PROXY_PREFETCH": "https://a.example.test,https://b.example.test"},
			func(c config) bool { return len(c.prefetch) == 2 && c.prefetch[1] == "https://b.example.test" }},
		{"repeated flag", []string{"--prefetch=https://a.example.test", "--prefetch=https://b.example.test"}, nil,
			func(c config) bool { return len(c.prefetch) == 2 }},
		{"boolean", nil, map[string]string{"PROXY_STRICT_API_VERSION": "true"}, func(c config) bool { return c.strictAPIVersion }},
		{"duration", nil, map[string]string{"PROXY_PROBE_TIMEOUT": "3s"}, func(c config) bool { return c.probeTimeout == 3*time.Second }},
		// A variable that is set in the whole pod must not turn every proxy into a probe.
		{"flags without a variable", nil, map[string]string{"PROXY_PROBE": "true", "PROXY_VERSION": "true"},
			func(c config) bool { return !c.probe && !c.showVersion }},
		{"HTTP proxy for Entra", nil, map[string]string{"https_proxy": "http://proxy.example.test:3128", "NO_PROXY": "login.example.test"},
			func(c config) bool {
				return c.httpProxy.HTTPSProxy == "http://proxy.example.test:3128" && c.httpProxy.NoProxy == "login.example.test"
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg, err := parseConfig(test.args, podEnvironment(test.environment), io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if !test.check(cfg) {
				t.Errorf("got %+v", cfg)
			}
		})
	}
}

// TestMultilineListIsRefused: otherwise all lines of a YAML block but the first would be lost.
// A line break at the end is accepted.
func TestMultilineListIsRefused(t *testing.T) {
	const one, two = "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10", "77777777-7777-4777-8777-777777777777"
	environment := podEnvironment(map[string]string{"PROXY_ALLOWED_CLIENT_IDS": one + "\n" + two + "\n"})
	if _, err := parseConfig(nil, environment, io.Discard); err == nil || !strings.Contains(err.Error(), "--allowed-client-ids (PROXY_ALLOWED_CLIENT_IDS) ") {
		t.Errorf("two lines: got error %v, want one that names the variable", err)
	}
	environment = podEnvironment(map[string]string{"PROXY_ALLOWED_CLIENT_IDS": one + "," + two + "\n"})
	if cfg, err := parseConfig(nil, environment, io.Discard); err != nil || len(cfg.allowedClientIDs) != 2 || cfg.allowedClientIDs[1] != two {
		t.Errorf("one line: got %q, %v, want both client IDs", cfg.allowedClientIDs, err)
	}
}

// TestProbeNeedsNoIdentity: --probe and --version work without any environment variable. A
// postStart hook has only the environment of its container.
func TestProbeNeedsNoIdentity(t *testing.T) {
	none := func(string) string { return "" }
	for _, args := range [][]string{{"--probe"}, {"--version"}} {
		if _, err := parseConfig(args, none, io.Discard); err != nil {
			t.Errorf("%q: got error %v, want none", args, err)
		}
	}
}

// TestPrefetchResource: --prefetch accepts only a resource that a token request may have.
// Otherwise the proxy would refresh a token forever that no client can get.
func TestPrefetchResource(t *testing.T) {
	for resource, ok := range map[string]bool{
		"https://vault.azure.net":              true,
		"api://6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a": true,
		"6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10": true,
		"vault.azure.net":                      false,
		"https://vault.azure.net#x":            false,
		"https://a.example.test b":             false,
		" ":                                    false,
	} {
		_, err := parseConfig([]string{"--prefetch=https://a.example.test", "--prefetch=" + resource}, podEnvironment(nil), io.Discard)
		if (err == nil) != ok || err != nil && (!errors.Is(err, errConfig) || !strings.Contains(err.Error(), "--prefetch (PROXY_PREFETCH)")) {
			t.Errorf("--prefetch=%s: got error %v, want one that names the flag: %t", resource, err, !ok)
		}
	}
}

// TestEmptyAllowedClientIDsAreRefused: a template that leaves the value empty must not allow every
// client ID.
func TestEmptyAllowedClientIDsAreRefused(t *testing.T) {
	given := []string{"--allowed-client-ids="}
	_, err := parseConfig(given, podEnvironment(nil), io.Discard)
	_, checkErr := parseCheck(given, podEnvironment(nil), io.Discard)
	for command, err := range map[string]error{"proxy": err, "proxy check": checkErr} {
		if !errors.Is(err, errConfig) || !strings.Contains(err.Error(), "--allowed-client-ids (PROXY_ALLOWED_CLIENT_IDS) is empty") {
			t.Errorf("%s: got %v, want an error that says that the flag is empty", command, err)
		}
	}
}

// TestInvalidHTTPProxyIsRefused: package httpproxy ignores an invalid HTTPS_PROXY silently, and the
// client assertion would bypass the configured proxy. The error does not contain the password.
func TestInvalidHTTPProxyIsRefused(t *testing.T) {
	for value, ok := range map[string]bool{
		"http://proxy.example.test:3128":                  true,
		"proxy.example.test:3128":                         true,
		"https://user:p%25ss@proxy.example.test":          true,
		"socks5://proxy.example.test:1080":                true,
		"http://user:c4n4ry%zz@proxy.example.test:3128":   false,
		"ftp://user:c4n4ry@proxy.example.test":            false,
		"http://user:c4n4ry@proxy.example.test:99999999":  false,
		"proxy.example.test:0":                            false,
		"http://":                                         false,
		"http://user:c4n4ry@proxy.example.test:3128 more": false,
	} {
		environment := podEnvironment(map[string]string{"HTTPS_PROXY": value})
		_, err := parseConfig(nil, environment, io.Discard)
		_, checkErr := parseCheck(nil, environment, io.Discard)
		for command, err := range map[string]error{"proxy": err, "proxy check": checkErr} {
			if (err == nil) != ok || err != nil && (!strings.Contains(err.Error(), "HTTPS_PROXY") || strings.Contains(err.Error(), "c4n4ry")) {
				t.Errorf("%s, HTTPS_PROXY=%s: got error %v, want one that names the variable, without the password: %t", command, value, err, !ok)
			}
		}
	}
}

// TestRequireIMDSBlocked: the flag contradicts forwarding, which is on by default.
func TestRequireIMDSBlocked(t *testing.T) {
	want := "--require-imds-blocked (PROXY_REQUIRE_IMDS_BLOCKED) requires --imds-passthrough=off (PROXY_IMDS_PASSTHROUGH)"
	for _, test := range []struct {
		environment map[string]string
		refused     bool
	}{
		{nil, false},
		{map[string]string{"PROXY_REQUIRE_IMDS_BLOCKED": "true"}, true},
		{map[string]string{"PROXY_REQUIRE_IMDS_BLOCKED": "true", "PROXY_IMDS_PASSTHROUGH": "off"}, false},
		{map[string]string{"PROXY_REQUIRE_IMDS_BLOCKED": "false"}, false},
	} {
		cfg, err := parseConfig(nil, podEnvironment(test.environment), io.Discard)
		_, checkErr := parseCheck(nil, podEnvironment(test.environment), io.Discard)
		for command, err := range map[string]error{"proxy": err, "proxy check": checkErr} {
			if (err != nil) != test.refused || err != nil && (!errors.Is(err, errConfig) || !strings.HasPrefix(err.Error(), want)) {
				t.Errorf("%s, %v: got %v, refused: %t", command, test.environment, err, test.refused)
			}
		}
		if set := test.environment["PROXY_REQUIRE_IMDS_BLOCKED"] == "true"; err == nil && (newBlockedCheck(cfg, nil) != nil) != set {
			t.Errorf("%v: there is a check of the address: %t, want %t", test.environment, !set, set)
		}
	}
}

// TestInvalidAppServiceHeaderIsRefused: a value that can be guessed, or a reference that
// Kubernetes has not replaced, is no secret. The error does not contain the value.
func TestInvalidAppServiceHeaderIsRefused(t *testing.T) {
	for value, want := range map[string]string{
		testSecret:                   "",
		"":                           "",
		"$(POD_UID)":                 "must have 16 to 256 characters",
		"c4n4ry":                     "must have 16 to 256 characters",
		"c4n4ry c4n4ry c4n4ry":       "must have 16 to 256 characters",
		"c4n4ryc4n4ryc4n4ry\nc4n4ry": "must have 16 to 256 characters",
		strings.Repeat("c4n4ry", 43): "must have 16 to 256 characters",
	} {
		environment := podEnvironment(map[string]string{"PROXY_APP_SERVICE_HEADER": value})
		cfg, err := parseConfig(nil, environment, io.Discard)
		_, checkErr := parseCheck(nil, environment, io.Discard)
		if want == "" {
			if err != nil || string(cfg.handlerConfig().AppServiceHeader) != value {
				t.Errorf("%q: got %q, %v", value, cfg.handlerConfig().AppServiceHeader, err)
			}
			continue
		}
		for command, err := range map[string]error{"proxy": err, "proxy check": checkErr} {
			if !errors.Is(err, errConfig) || !strings.Contains(err.Error(), "--app-service-header (PROXY_APP_SERVICE_HEADER) "+want) || strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("%s, %q: got %v, want %q without the value", command, value, err, want)
			}
		}
	}
}

// TestExchangeConfig: every setting of the exchange reaches it. A setting that is parsed but not
// passed on would have no effect, without an error.
func TestExchangeConfig(t *testing.T) {
	const clientID = "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"
	cfg, err := parseConfig([]string{"--prefetch=https://vault.azure.net", "--ca-file=/ca.pem"}, podEnvironment(map[string]string{
		"AZURE_CLIENT_ID":              clientID,
		"AZURE_AUTHORITY_HOST":         "https://login.example.test/",
		"AZURE_KUBERNETES_TOKEN_PROXY": "https://binding.example.test",
		"AZURE_KUBERNETES_SNI_NAME":    "name.example.test",
		"AZURE_KUBERNETES_CA_FILE":     "/binding.pem",
		"HTTPS_PROXY":                  "http://proxy.example.test:3128",
		"NO_PROXY":                     "direct.example.test",
	}), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	got := cfg.exchangeConfig()
	for host, want := range map[string]string{"login.example.test": "http://proxy.example.test:3128", "direct.example.test": ""} {
		via, err := got.Proxy(&http.Request{URL: &url.URL{Scheme: "https", Host: host}})
		if err != nil || via == nil && want != "" || via != nil && via.String() != want {
			t.Errorf("HTTP proxy for %s: got %v, %v, want %q", host, via, err, want)
		}
	}
	got.Proxy = nil
	want := exchange.Config{
		TenantID:           cfg.tenantID,
		FederatedTokenFile: cfg.federatedTokenFile,
		AuthorityHost:      "https://login.example.test/",
		CAFile:             "/ca.pem",
		Binding:            exchange.Binding{TokenProxy: "https://binding.example.test", SNIName: "name.example.test", CAFile: "/binding.pem"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	wantPrefetched := []tokens.Request{{ClientID: clientID, Resource: "https://vault.azure.net"}}
	if got := cfg.prefetched(); !slices.Equal(got, wantPrefetched) {
		t.Errorf("prefetched: got %+v, want %+v", got, wantPrefetched)
	}
}

// TestConfiguredClientIDs: every client ID of the configuration is found, because each has a budget
// of exchanges of its own.
func TestConfiguredClientIDs(t *testing.T) {
	const byDefault, mapped, allowed = "11111111-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000002", "11111111-0000-4000-8000-000000000003"
	cfg, err := parseConfig([]string{
		"--identity=33333333-3333-4333-8333-333333333333=" + mapped,
		"--allowed-client-ids=" + strings.Join([]string{byDefault, mapped, strings.ToUpper(allowed)}, ","),
	}, podEnvironment(map[string]string{"AZURE_CLIENT_ID": byDefault}), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Sorted(slices.Values(cfg.configuredClientIDs()))
	if want := []azure.ClientID{byDefault, mapped, allowed}; !slices.Equal(slices.Compact(got), want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := new(config).configuredClientIDs(); len(got) != 0 {
		t.Errorf("empty configuration: got %q, want none", got)
	}
}

// TestFlagsAreValidatedFirst: the proxy and `proxy check` both report an invalid flag before they
// look at anything outside the process, such as the missing token file here.
func TestFlagsAreValidatedFirst(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--identity=junk"}, "--identity (PROXY_IDENTITY)"},
		{[]string{"--allowed-client-ids=77777777-7777-4777-8777-777777777777"}, "AZURE_CLIENT_ID"},
		{[]string{"--imds-address=nonsense"}, "--imds-address"},
	} {
		environment := podEnvironment(map[string]string{
			"AZURE_CLIENT_ID":            "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10",
			"AZURE_FEDERATED_TOKEN_FILE": "/does/not/exist",
		})
		if _, err := parseConfig(test.args, environment, io.Discard); !errors.Is(err, errConfig) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("proxy %q: got %v, want one that names %s", test.args, err, test.want)
		}
		check, err := parseCheck(test.args, environment, io.Discard)
		if err == nil {
			err = check.diagnosis().Refused
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("proxy check %q: got %v, want one that names %s", test.args, err, test.want)
		}
	}
}
