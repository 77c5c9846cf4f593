package netrules

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden plans anew")

func forwarding() Config {
	return Config{
		Metadata:  netip.MustParseAddrPort("169.254.169.254:80"),
		ProxyPort: 8000,
		UID:       1501,
		GID:       1501,
	}
}

func sealed() Config {
	c := forwarding()
	c.Sealed = true
	return c
}

func denying(t *testing.T, c Config, targets ...string) Config {
	t.Helper()
	for _, s := range targets {
		target, err := ParseTarget(s)
		if err != nil {
			t.Fatal(err)
		}
		c.Deny = append(c.Deny, target)
	}
	return c
}

func TestPlanGolden(t *testing.T) {
	other := forwarding()
	other.Metadata, other.ProxyPort, other.UID, other.GID = netip.MustParseAddrPort("100.100.100.200:8080"), 9000, 2000, 3000
	for name, c := range map[string]Config{
		"forwarding":       forwarding(),
		"sealed":           sealed(),
		"other-values":     other,
		"forwarding-deny":  denying(t, forwarding(), "168.63.129.16:80", "168.63.129.16:32526"),
		"sealed-deny-cidr": denying(t, sealed(), "168.63.129.0/24"),
	} {
		t.Run(name, func(t *testing.T) {
			plan := NewPlan(c)
			golden(t, name+".rules", plan.Format(NFT))
			golden(t, name+".nft", plan.Format(Native))
			if plan.Format(Legacy) != plan.Format(NFT) || plan.Format(Auto) != plan.Format(Native) {
				t.Error("legacy must have the text of nft, and auto that of native")
			}
		})
	}
}

// golden compares a text with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n%s\nwant:\n%s", name, got, want)
	}
}

func TestChainNamesFit(t *testing.T) {
	// XT_EXTENSION_MAXNAMELEN without the terminating zero.
	const limit = 28
	for _, name := range []string{natChain, filterChain} {
		if len(name) > limit {
			t.Errorf("%s has %d characters, more than %d", name, len(name), limit)
		}
	}
}

func TestValidate(t *testing.T) {
	with := func(change func(*Config)) Config {
		c := forwarding()
		change(&c)
		return c
	}
	metadata := func(s string) Config {
		return with(func(c *Config) { c.Metadata = netip.MustParseAddrPort(s) })
	}
	for name, tt := range map[string]struct {
		config Config
		want   error
	}{
		"forwarding":          {forwarding(), nil},
		"sealed":              {sealed(), nil},
		"sealed root":         {with(func(c *Config) { c.Sealed, c.UID, c.GID = true, 0, 0 }), nil},
		"exempt root":         {with(func(c *Config) { c.UID = 0 }), ErrExemptRoot},
		"exempt root's group": {with(func(c *Config) { c.GID = 0 }), ErrExemptRoot},
		"no proxy port":       {with(func(c *Config) { c.ProxyPort = 0 }), ErrProxyPort},
		"no metadata port":    {metadata("169.254.169.254:0"), ErrMetadataPort},
		"no metadata":         {with(func(c *Config) { c.Metadata = netip.AddrPort{} }), ErrMetadataAddress},
		"IPv6":                {metadata("[fd00:ec2::254]:80"), ErrMetadataAddress},
		"mapped IPv4":         {metadata("[::ffff:169.254.169.254]:80"), ErrMetadataAddress},
		"loopback":            {metadata("127.0.0.2:80"), ErrMetadataAddress},
		"unspecified":         {metadata("0.0.0.0:80"), ErrMetadataAddress},
		"multicast":           {metadata("224.0.0.1:80"), ErrMetadataAddress},
		"broadcast":           {metadata("255.255.255.255:80"), ErrMetadataAddress},
		"deny":                {denying(t, forwarding(), "168.63.129.16:80"), nil},
		"deny the metadata":   {denying(t, forwarding(), "169.254.169.254"), ErrDenyMetadata},
		"deny its port":       {denying(t, forwarding(), "169.254.169.254:80"), ErrDenyMetadata},
		"deny its network":    {denying(t, forwarding(), "169.254.0.0/16"), ErrDenyMetadata},
		"deny a neighbour":    {denying(t, forwarding(), "169.254.169.255"), nil},
		"deny everything":     {denying(t, forwarding(), "0.0.0.0/0"), ErrDenyTooWide},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tt.config.Validate(); !errors.Is(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// TestParseTargetErrors checks that the error about an IPv6 target is about its address, and not
// about a port.
func TestParseTargetErrors(t *testing.T) {
	for in, want := range map[string]string{"::1": "IPv4", "[fd00::1]:80": "IPv4", "10.0.0.1:0": "port"} {
		if _, err := ParseTarget(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseTarget(%q): %v, want an error about the %s", in, err, want)
		}
	}
}

func TestParseTarget(t *testing.T) {
	for in, want := range map[string]string{
		"168.63.129.16":         "168.63.129.16/32",
		"168.63.129.16:80":      "168.63.129.16/32:80",
		"168.63.129.16/32:80":   "168.63.129.16/32:80",
		"10.1.2.3/8":            "10.0.0.0/8",
		"10.0.0.0/8:65535":      "10.0.0.0/8:65535",
		"":                      "",
		"10.0.0.0/33":           "",
		"10.0.0.0/8:0":          "",
		"10.0.0.0/8:65536":      "",
		"10.0.0.0/8:":           "",
		"10.0.0.0/8:http":       "",
		"10.0.0.1 -j ACCEPT":    "",
		"10.0.0.1\n-A OUTPUT":   "",
		"metadata.example.test": "",
		"fd00::/8":              "",
		"::ffff:10.0.0.1":       "",
	} {
		target, err := ParseTarget(in)
		got := ""
		if err == nil {
			got = target.String()
		}
		if got != want {
			t.Errorf("ParseTarget(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}
