package cni

import (
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"imds-oidc-proxy/internal/netrules"
)

// TestNotAsking: a pod that does not ask gets the unchanged result of the plugin before, and its
// network namespace is not even opened: the path does not exist.
func TestNotAsking(t *testing.T) {
	rules := &fakeRedirect{}
	p := &plugin{redirect: rules.redirect()}
	args := stdin(t, `{"kubernetes.io/config.seen":"now"}`, prevResult, "")
	if err := errors.Join(p.add(args), p.check(args)); err != nil {
		t.Fatal(err)
	}
	if string(p.result) != prevResult {
		t.Errorf("got the result %s, want %s", p.result, prevResult)
	}
	if len(rules.installed)+len(rules.checked) != 0 {
		t.Errorf("got %+v, want no call", rules)
	}
}

// TestRefusals: after an error, ADD has no result, and neither ADD nor CHECK has used the
// network namespace.
func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		annotations, prevResult, netns string
		code                           uint
		want                           string
	}{
		"not in a list":            {annotations: annotationsOf(asking), code: types.ErrInvalidNetworkConfig, want: "there is no prevResult"},
		"prevResult null":          {annotations: annotationsOf(asking), prevResult: "null", code: types.ErrInvalidNetworkConfig, want: "there is no prevResult"},
		"no annotations":           {prevResult: prevResult, code: types.ErrInvalidNetworkConfig, want: "the runtime passed no annotations"},
		"invalid annotation":       {annotations: annotationsOf("{}"), prevResult: prevResult, code: codeRequest, want: "must have the exact form"},
		"no network namespace":     {annotations: annotationsOf(asking), prevResult: prevResult, netns: "/does/not/exist", code: types.ErrInvalidNetNS, want: "no such file"},
		"a file":                   {annotations: annotationsOf(asking), prevResult: prevResult, netns: "/proc/self/status", code: types.ErrInvalidNetNS, want: "is not a network namespace"},
		"another kind":             {annotations: annotationsOf(asking), prevResult: prevResult, netns: "/proc/self/ns/mnt", code: types.ErrInvalidNetNS, want: "is not a network namespace"},
		"the plugin's own":         {annotations: annotationsOf(asking), prevResult: prevResult, netns: "/proc/self/ns/net", code: types.ErrInvalidNetNS, want: "is the node's network namespace"},
		"the plugin's own, thread": {annotations: annotationsOf(asking), prevResult: prevResult, netns: "/proc/thread-self/ns/net", code: types.ErrInvalidNetNS, want: "is the node's network namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			rules := &fakeRedirect{}
			p := &plugin{redirect: rules.redirect()}
			args := stdin(t, tt.annotations, tt.prevResult, "")
			args.Netns = tt.netns
			err := p.add(args)
			if code := codeOf(t, err); code != tt.code || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("ADD: got code %d, %q, want %d, one line with %q", code, err, tt.code, tt.want)
			}
			if tt.prevResult == prevResult { // CHECK needs none
				if err := p.check(args); err == nil || codeOf(t, err) != tt.code {
					t.Errorf("CHECK: got %v, want an error with code %d", err, tt.code)
				}
			}
			if len(rules.installed)+len(rules.checked) != 0 || p.result != nil {
				t.Errorf("got the result %q and %+v, want none, and no call", p.result, rules)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	p := &plugin{redirect: (&fakeRedirect{}).redirect()}
	if err := p.status(stdin(t, "", "", "")); err != nil {
		t.Error(err)
	}
	if err := p.status(stdin(t, "", "", `,"exemptUID":[]`)); err == nil {
		t.Error("got no error for an unknown key")
	}
}

// TestRemedy: the error of the rules has its remedy as details.
func TestRemedy(t *testing.T) {
	if got := remedy(&netrules.Error{Cause: "cause", Remedy: "load the module"}); got != "load the module" {
		t.Errorf("got %q", got)
	}
	if got := remedy(errors.New("another")); got != "" {
		t.Errorf("got %q", got)
	}
}
