package cniinstall

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// TestCompare: the entry is in the first valid list, and in no other one.
func TestCompare(t *testing.T) {
	withEntry := func(text string) string {
		return strings.Replace(text, `{"type":"portmap"`, entry+`,{"type":"portmap"`, 1)
	}
	for name, tt := range map[string]struct {
		files   map[string]string
		want    string // the file with the entry
		changes string
		err     string
	}{
		"one list":              {files: map[string]string{"10.conflist": lists["azure"]}, want: "10.conflist", changes: changedBinary + ", " + changedList},
		"the first by name":     {files: map[string]string{"15.conflist": lists["swift"], "05.conflist": lists["cilium"]}, want: "05.conflist", changes: changedBinary + ", " + changedList},
		"the first is invalid":  {files: map[string]string{"05.conflist": `{"name":`, "15.conflist": lists["swift"]}, want: "15.conflist", changes: changedBinary + ", " + changedList},
		"in place":              {files: map[string]string{"15.conflist": withEntry(lists["swift"])}, want: "15.conflist", changes: changedBinary},
		"in the list of before": {files: map[string]string{"15.conflist": withEntry(lists["swift"]), "05.conflist": lists["cilium"]}, want: "05.conflist", changes: changedBinary + ", " + changedList + ", " + changedOther},
		"no list":               {err: "there is no list yet", changes: changedBinary},
		"no valid list":         {files: map[string]string{"05.conflist": `{}`, "15.conflist": "x"}, err: "05.conflist cannot be used: it has no name", changes: changedBinary},
		"a single plugin":       {files: map[string]string{"05.conf": `{"type":"bridge"}`, "15.conflist": lists["swift"]}, err: "05.conf is the first file and no list", changes: changedBinary},
		"after the list":        {files: map[string]string{"25.conf": `{"type":"bridge"}`, "15.conflist": lists["swift"]}, want: "15.conflist", changes: changedBinary + ", " + changedList},
		"newer version":         {files: map[string]string{"10.conflist": `{"cniVersion":"2.0.0","name":"n","plugins":[{"type":"a"}]}`}, err: `"2.0.0" is not supported`, changes: changedBinary},
		"only this plugin":      {files: map[string]string{"10.conflist": `{"name":"n","plugins":[` + entry + `]}`}, err: "it has no other plugin", changes: changedBinary},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, tt.files)
			changes, err := n.compare()
			if strings.Join(changes, ", ") != tt.changes {
				t.Errorf("got the changes %q, want %q", changes, tt.changes)
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "\n") {
					t.Errorf("got %v, want one line with %q", err, tt.err)
				}
				for name, text := range tt.files {
					if n.read(n.conf(name)) != text {
						t.Errorf("%s changed", name)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for name := range tt.files {
				if got := n.hasEntry(name); got != (name == tt.want) {
					t.Errorf("%s: has the entry: %t", name, got)
				}
			}
			if changes, err := n.compare(); len(changes) > 0 || err != nil {
				t.Errorf("a second time: got %q, %v, want no change", changes, err)
			}
		})
	}
}

// TestBinaryFirst: without the plugin's file, the entry is not added.
func TestBinaryFirst(t *testing.T) {
	n := newNode(t, map[string]string{"10.conflist": lists["azure"]})
	if err := os.Remove(n.BinDir); err != nil {
		t.Fatal(err)
	}
	if _, err := n.compare(); err == nil || !strings.Contains(err.Error(), "cannot copy the plugin to "+n.BinDir) {
		t.Errorf("got %v", err)
	}
	if n.read(n.conf("10.conflist")) != lists["azure"] {
		t.Error("the list changed")
	}
}

// TestUninstall: each list is as before the installation, whatever its mode and layout, and the
// plugin's file is there until RemoveBinary.
func TestUninstall(t *testing.T) {
	n := newNode(t, map[string]string{"10.conflist": lists["spaces"], "20.conflist": lists["azure"], "30.conf": `{"type":"bridge"}`, "40.conflist": "{"})
	if _, err := n.compare(); err != nil {
		t.Fatal(err)
	}
	n.write(n.conf("20.conflist"), strings.Replace(lists["azure"], `"plugins": [`, `"plugins": [ `+entry+`,`, 1)) // an old place
	for range 2 {
		if err := n.Uninstall(); err != nil {
			t.Fatal(err)
		}
		if n.read(n.conf("10.conflist")) != lists["spaces"] {
			t.Errorf("got %s", n.read(n.conf("10.conflist")))
		}
		if n.hasEntry("20.conflist") {
			t.Error("the entry is in the second list")
		}
		if n.read(n.binary()) != "the program" {
			t.Error("the plugin's file changed")
		}
	}
	for range 2 {
		if err := n.RemoveBinary(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(n.binary()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want no file", err)
	}
}

func TestUninstallFails(t *testing.T) {
	for name, text := range map[string]string{
		"cut":              `{"name":"n","plugins":[{"type":"a"},` + entry,
		"only this plugin": `{"name":"n","plugins":[` + entry + `]}`,
	} {
		n := newNode(t, map[string]string{"10.conflist": text})
		if err := n.Uninstall(); err == nil || !strings.Contains(err.Error(), "10.conflist") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line with the file's name", name, err)
		}
	}
}

// TestReady: not ready before the first comparison, and whenever the plugin is not in place.
func TestReady(t *testing.T) {
	n := newNode(t, nil)
	if err := n.Ready(); !errors.Is(err, errNotCompared) {
		t.Errorf("at first: got %v", err)
	}
	step := func(want string) {
		t.Helper()
		changes, err := n.compare()
		if err := n.record(changes, err, time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := n.Ready(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	step("there is no list yet")
	step("there is no list yet")
	n.write(n.conf("10.conflist"), lists["azure"])
	step("")
	step("")
	n.write(n.conf("10.conflist"), "")
	step("10.conflist cannot be used")
	n.write(n.conf("10.conflist"), lists["azure"])
	step("")
	if got := n.logged("the plugin is not in place"); got != 2 {
		t.Errorf("logged %d errors, want one for each new reason: %v", got, n.log.All())
	}
	if got := n.logged("the plugin is in place"); got != 2 {
		t.Errorf("logged %d times that it is in place, want 2", got)
	}
}

// TestFight: the repair after maxRepairs within fightTime ends the installer, and repairs that
// are longer ago do not count.
func TestFight(t *testing.T) {
	n := newNode(t, nil)
	start := time.Now()
	repair := func(at time.Duration) error { return n.record([]string{changedList}, nil, start.Add(at)) }
	if err := repair(0); err != nil { // the installation
		t.Fatal(err)
	}
	for i := range 2 * maxRepairs { // one a minute is slow enough
		if err := repair(time.Duration(i) * (fightTime/maxRepairs + time.Second)); err != nil {
			t.Fatalf("repair %d: %v", i, err)
		}
	}
	late := 10 * fightTime
	for range maxRepairs {
		if err := repair(late); err != nil {
			t.Fatal(err)
		}
	}
	if err := repair(late); !errors.Is(err, ErrFight) || !strings.Contains(err.Error(), changedList) {
		t.Errorf("got %v, want ErrFight with the last change", err)
	}
}
