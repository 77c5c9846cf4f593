package netrules

import (
	"fmt"
	"strings"
	"testing"
)

// TestClassify uses recorded output of iptables 1.8 with both backends.
func TestClassify(t *testing.T) {
	input := NewPlan(forwarding()).commit(tableNAT, state{jumps: []string{"-A OUTPUT -j " + natChain}})
	for name, tt := range map[string]struct {
		backend  Backend
		exitCode int
		output   string
		want     Kind
		// wantText must be in the cause or the remedy.
		wantText     string
		unprivileged bool
	}{
		"capability, nft": {NFT, 4,
			"iptables-nft-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)\n",
			MissingCapability, "NET_ADMIN", false},
		"capability, legacy": {Legacy, 3,
			"iptables v1.8.9 (legacy): can't initialize iptables table `nat': Permission denied (you must be root)\nPerhaps iptables or your kernel needs to be upgraded.\n",
			MissingCapability, "NET_RAW", false},
		"lock": {Legacy, 4,
			"Can't lock /run/xtables.lock: Resource temporarily unavailable\nAnother app is currently holding the xtables lock. Stopped waiting after 5s.\n",
			LockHeld, "another process", false},
		"lock, older": {Legacy, 4,
			"Another app is currently holding the xtables lock. Perhaps you want to use the -w option?\n",
			LockHeld, "another process", false},
		"lock file": {Legacy, 4,
			"Fatal: can't open lock file /run/xtables.lock: Read-only file system\n",
			LockHeld, "XTABLES_LOCKFILE", false},
		"owner, nft": {NFT, 4,
			"Warning: Extension owner revision 0 not supported, missing kernel module?\niptables-restore v1.8.9 (nf_tables): \nline 5: RULE_APPEND failed (No such file or directory): rule in chain IMDS_PROXY_OUTPUT\n",
			MissingModule, "xt_owner", false},
		"REDIRECT, nft": {NFT, 4,
			"Warning: Extension REDIRECT revision 0 not supported, missing kernel module?\niptables v1.8.8 (nf_tables):  RULE_INSERT failed (No such file or directory): rule in chain PREROUTING\n",
			MissingModule, "xt_REDIRECT, nft_redir", false},
		"tcp, legacy": {Legacy, 1,
			"Warning: Extension tcp revision 0 not supported, missing kernel module?\niptables-restore: line 7 failed\n",
			MissingModule, "xt_tcpudp", false},
		"nat table, legacy": {Legacy, 3,
			"modprobe: FATAL: Module ip_tables not found in directory /lib/modules/5.4.224-1.el8.elrepo.x86_64\niptables v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist (do you need to insmod?)\nPerhaps iptables or your kernel needs to be upgraded.\n",
			MissingModule, "iptable_nat, nf_nat", false},
		"filter table, legacy": {Legacy, 2,
			"iptables-restore v1.6.1: iptables-restore: unable to initialize table 'filter'\n\nError occurred at line: 1\nTry `iptables-restore -h' or 'iptables-restore --help' for more information.\n",
			MissingModule, "iptable_filter", false},
		"capability, legacy restore": {Legacy, 2,
			"iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'filter'\nError occurred at line: 1\n",
			MissingCapability, "NET_RAW", true},
		"commit refused, legacy": {Legacy, 1, "iptables-restore: line 7 failed\n", MissingModule, "nf_nat", false},
		"no nf_tables": {NFT, 1,
			"iptables v1.8.9 (nf_tables): Failed to initialize nft: Protocol not supported\n",
			MissingModule, "nft_chain_nat", false},
		"nat chain, nft": {NFT, 4,
			"iptables-restore v1.8.7 (nf_tables): \nline 2: CHAIN_ADD failed (No such file or directory): chain OUTPUT\n",
			MissingModule, "nf_nat", false},
		"plug-in": {NFT, 2,
			"iptables-nft-restore v1.8.9 (nf_tables): Couldn't load match `owner':No such file or directory\n\nError occurred at line: 5\nTry `iptables-nft-restore -h' or 'iptables-nft-restore --help' for more information.\n",
			NoBinary, "extension owner", false},
		"incompatible": {NFT, 1,
			"iptables v1.8.9 (nf_tables): table `nat' is incompatible, use 'nft' tool.\n",
			WrongBackend, "nft tool", false},
		"rule of nft": {NFT, 3,
			"Error: unknown ipv4 meta key\niptables v1.8.9 (nf_tables): Parsing nftables rule failed\nPerhaps iptables or your kernel needs to be upgraded.\n",
			WrongBackend, "nft tool", false},
		"race, nft": {NFT, 1,
			"iptables-nft-restore: line 3 failed: Bad rule (does a matching rule exist in that chain?).\n",
			RulesDiffer, "at the same time", false},
		"race, legacy": {Legacy, 1, "iptables-restore: line 3 failed\n", RulesDiffer, "at the same time", false},
		"chain in use": {NFT, 4,
			"iptables-nft-restore v1.8.9 (nf_tables): \nline 3: CHAIN_DEL failed (Device or resource busy): chain IMDS_PROXY_OUTPUT\n",
			RulesDiffer, "remove that rule", false},
		"anything else":                   {NFT, 139, "", 0, "exited with 139", false},
		"a line number that is too large": {Legacy, 1, "iptables-restore: line 99999999999999999999 failed\n", 0, "line 9", false},
	} {
		t.Run(name, func(t *testing.T) {
			e := failedRun{"committing the nat table", tt.backend, tt.exitCode, tt.output, input, tt.unprivileged}.classify()
			if e.Kind != tt.want {
				t.Errorf("kind %d, want %d: %s", e.Kind, tt.want, e.Cause)
			}
			if text := e.Cause + "; " + e.Remedy; !strings.Contains(text, tt.wantText) || strings.Contains(text, "\n") {
				t.Errorf("%q: want one line with %q", text, tt.wantText)
			}
			if tt.want != 0 && e.Remedy == "" {
				t.Error("no remedy")
			}
		})
	}
}

// TestChainInUseLegacy checks a failure for which iptables-legacy-restore reports only the line
// number.
func TestChainInUseLegacy(t *testing.T) {
	input := removal(tableNAT, state{chains: []string{natChain}})
	failed := strings.Count(input[:strings.Index(input, "-X ")], "\n") + 1
	e := failedRun{backend: Legacy, exitCode: 1, output: fmt.Sprintf("iptables-restore: line %d failed\n", failed), input: input}.classify()
	if e.Kind != RulesDiffer || !strings.Contains(e.Remedy, "remove that rule") {
		t.Errorf("kind %d, remedy %q for line %d of\n%s", e.Kind, e.Remedy, failed, input)
	}
}

// TestInputLine includes line numbers that the input does not have.
func TestInputLine(t *testing.T) {
	f := failedRun{input: "*nat\nCOMMIT"}
	for output, want := range map[string]string{
		"line 0 failed": "",
		"line 1 failed": "*nat",
		"line 2 failed": "COMMIT",
		"line 3 failed": "",
		"no line":       "",
	} {
		if got := f.inputLine(output); got != want {
			t.Errorf("%s: got %q, want %q", output, got, want)
		}
	}
}

func TestModulesNotIn(t *testing.T) {
	for name, tt := range map[string]struct {
		known   []string
		backend Backend
		want    string
	}{
		"no owner":    {[]string{"tcp", "conntrack", "conntrack", "REDIRECT", "DNAT", "REJECT"}, Legacy, "xt_owner"},
		"no list":     {nil, NFT, "nf_nat, or iptable_nat (for nft: nft_chain_nat); the kernel does not report which one is missing"},
		"no REDIRECT": {[]string{"tcp", "owner", "conntrack", "DNAT", "REJECT"}, Legacy, "xt_REDIRECT, nf_nat"},
		"two":         {[]string{"tcp", "owner", "REDIRECT", "DNAT"}, NFT, "xt_conntrack, nft_reject_ipv4"},
		"all loaded": {[]string{"tcp", "owner", "conntrack", "REDIRECT", "DNAT", "REJECT"}, Legacy,
			"nf_nat, or iptable_nat (for nft: nft_chain_nat); the kernel does not report which one is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := modulesNotIn(tt.known, tt.backend); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
