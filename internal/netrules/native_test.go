package netrules

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// newNamespace returns a new network namespace, which no process is in.
func newNamespace(t *testing.T) *os.File {
	t.Helper()
	cmd := exec.Command("cat") // it waits for the end of its standard input
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); errors.Is(err, syscall.EPERM) {
		t.Skip("needs root, for a network namespace")
	} else if err != nil {
		t.Fatal(err)
	}
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	stdin.Close()
	if err := errors.Join(err, cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { namespace.Close() })
	return namespace
}

func newKernel(t *testing.T) kernel {
	t.Helper()
	return kernel{netns: int(newNamespace(t).Fd())}
}

// TestNative installs each plan over the others, and checks that exactly that plan is there.
func TestNative(t *testing.T) {
	k := newKernel(t)
	plans := map[string]Config{
		"forwarding":   forwarding(),
		"sealed":       sealed(),
		"other port":   {Metadata: forwarding().Metadata, ProxyPort: 9000, UID: 1501, GID: 1501},
		"other user":   {Metadata: forwarding().Metadata, ProxyPort: 8000, UID: 2000, GID: 1501},
		"other group":  {Metadata: forwarding().Metadata, ProxyPort: 8000, UID: 1501, GID: 2000},
		"sealed root":  {Metadata: forwarding().Metadata, ProxyPort: 8000, Sealed: true},
		"denied":       denying(t, forwarding(), "10.0.0.0/8", "192.0.2.1"),
		"denied ports": denying(t, forwarding(), "168.63.129.16:80", "172.16.0.0/12:443"),
		"denied ends": denying(t, forwarding(), "0.0.0.0/8", "10.0.0.0/8", "11.0.0.0/8", "10.1.0.0/16", "10.1.0.0/16:80", "10.1.2.0/24:80",
			"10.1.2.0/24:443", "224.0.0.0/3", "255.255.255.255", "0.0.0.0/8:1", "224.0.0.0/3:65535"),
	}
	for name, c := range plans {
		for range 2 { // the second replaces the same rules
			if err := k.apply(native(c)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for other, c := range plans {
			if err := k.check(native(c)); (err == nil) != (other == name) || err != nil && !kindIs(err, RulesDiffer) {
				t.Errorf("%s is installed: check of %s: %v", name, other, err)
			}
		}
	}
	for range 2 {
		if err := k.remove(); err != nil {
			t.Fatal(err)
		}
		if now, err := k.read(); err != nil || now.any() {
			t.Errorf("after remove: %+v, %v", now, err)
		}
	}
	if err := k.check(native(forwarding())); !kindIs(err, RulesDiffer) || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("check without a table: %v", err)
	}
}

// TestNativeAtTheBound installs as many denied destinations as a configuration may have.
func TestNativeAtTheBound(t *testing.T) {
	k := newKernel(t)
	c := forwarding()
	for i := range MaxDeny {
		target := fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)
		if i%2 == 1 {
			target = fmt.Sprintf("11.%d.%d.0/24:%d", i/256, i%256, 1+i)
		}
		c = denying(t, c, target)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := k.apply(native(c)); err != nil {
		t.Error(err)
	}
	c = denying(t, c, "192.0.2.1")
	if err := c.Validate(); !errors.Is(err, ErrDenyTooMany) {
		t.Errorf("one more: got %v, want %v", err, ErrDenyTooMany)
	}
}

// TestOverlap checks that destinations that others contain are left out, because the kernel
// refuses overlapping elements.
func TestOverlap(t *testing.T) {
	everywhere, ports := denied(denying(t, Config{}, "10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/8:80", "10.2.0.0/16:80", "10.2.0.0/16:81", "10.0.0.0/8", "192.0.2.1").Deny)
	if got := fmt.Sprint(everywhere, ports); got != "[10.0.0.0/8 192.0.2.1/32] [10.0.0.0/8:80 10.2.0.0/16:81]" {
		t.Errorf("got %s", got)
	}
}

// addIPTables adds tables like those of iptables-nft: rules of an earlier redirect, and of another
// program, with expressions that this package does not know.
func addIPTables(t *testing.T, k kernel) {
	t.Helper()
	conn, err := k.connect()
	if err != nil {
		t.Fatal(err)
	}
	for name, kind := range map[string]nftables.ChainType{tableNAT: nftables.ChainTypeNAT, tableFilter: nftables.ChainTypeFilter} {
		table := conn.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyIPv4})
		priority := nftables.ChainPriority(-100)
		output := conn.AddChain(&nftables.Chain{Name: hookOutput, Table: table, Type: kind, Hooknum: nftables.ChainHookOutput, Priority: &priority})
		for _, ours := range []string{map[string]string{tableNAT: natChain, tableFilter: filterChain}[name], azwiOutput, azwiRedirect} {
			chain := conn.AddChain(&nftables.Chain{Name: ours, Table: table})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Counter{}}})
			conn.AddRule(&nftables.Rule{Table: table, Chain: output, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: ours}}})
		}
		others := conn.AddChain(&nftables.Chain{Name: "OTHERS", Table: table})
		conn.AddRule(&nftables.Rule{Table: table, Chain: output, Exprs: []expr.Any{
			&expr.Numgen{Register: 1, Modulus: 2}, &expr.Verdict{Kind: expr.VerdictJump, Chain: others.Name}}})
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestNativeTakesOver checks that chains of earlier redirects go, and those of others stay.
func TestNativeTakesOver(t *testing.T) {
	k := newKernel(t)
	addIPTables(t, k)
	before, err := k.read()
	if err != nil || len(before.old.chains) != 6 || len(before.old.jumps) != 6 {
		t.Fatalf("got %d chains and %d jumps (%v), want 6 and 6", len(before.old.chains), len(before.old.jumps), err)
	}
	if err := k.apply(native(forwarding())); err != nil {
		t.Fatal(err)
	}
	if now, err := k.read(); err != nil || !now.table || len(now.old.chains) > 0 {
		t.Errorf("got %+v, %v", now, err)
	}
	for _, table := range applyOrder {
		rules, err := k.listRules(nftables.TableFamilyIPv4, table, hookOutput)
		if err != nil || len(rules) != 1 || rules[0].jumpsTo() != "OTHERS" {
			t.Errorf("OUTPUT of %s: got %d rules, %v, want the other program's", table, len(rules), err)
		}
	}
	// A chain that another program's rule jumps to cannot be removed. Nothing is changed then.
	addIPTables(t, k)
	conn, _ := k.connect()
	table := &nftables.Table{Name: tableNAT, Family: nftables.TableFamilyIPv4}
	conn.AddRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: "OTHERS"}, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: natChain}}})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := k.apply(native(sealed())); !kindIs(err, RulesDiffer) {
		t.Errorf("with a foreign jump: %v, want RulesDiffer", err)
	}
	if err := k.check(native(forwarding())); err != nil {
		t.Errorf("the table has changed: %v", err)
	}
}

// TestInstallIn installs the redirect in another namespace, as a CNI plugin does.
func TestInstallIn(t *testing.T) {
	namespace := newNamespace(t)
	c := forwarding()
	if err := CheckIn(namespace, c); !kindIs(err, RulesDiffer) {
		t.Errorf("CheckIn before: %v, want RulesDiffer", err)
	}
	for range 2 {
		if err := InstallIn(namespace, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := CheckIn(namespace, c); err != nil {
		t.Errorf("CheckIn: %v", err)
	}
	if err := CheckIn(namespace, sealed()); !kindIs(err, RulesDiffer) {
		t.Errorf("CheckIn of another configuration: %v, want RulesDiffer", err)
	}
}

// TestInstallInNode checks that InstallIn refuses a namespace with a chain of kubelet, in any
// table, or with the table of kube-proxy.
func TestInstallInNode(t *testing.T) {
	for table, chain := range map[string]string{"mangle": "KUBE-KUBELET-CANARY", "kube-proxy": "services"} {
		namespace := newNamespace(t)
		conn, err := kernel{netns: int(namespace.Fd())}.connect()
		if err != nil {
			t.Fatal(err)
		}
		conn.AddChain(&nftables.Chain{Name: chain, Table: conn.AddTable(&nftables.Table{Name: table, Family: nftables.TableFamilyIPv4})})
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
		err = InstallIn(namespace, forwarding())
		if !kindIs(err, HostNetwork) || !strings.Contains(err.Error(), chain) && !strings.Contains(err.Error(), table) {
			t.Errorf("%s %s: got %v, want HostNetwork with its name", table, chain, err)
		}
		if err := CheckIn(namespace, forwarding()); !kindIs(err, RulesDiffer) {
			t.Errorf("%s %s: CheckIn: %v, want that nothing is installed", table, chain, err)
		}
	}
}
