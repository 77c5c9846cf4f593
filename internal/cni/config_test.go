package cni

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"imds-oidc-proxy/internal/cnirequest"
	"imds-oidc-proxy/internal/netrules"
)

// codeOf returns the code of an error in the format of the CNI specification.
func codeOf(t *testing.T, err error) uint {
	t.Helper()
	failure, ok := errors.AsType[*types.Error](err)
	if !ok {
		t.Fatalf("got %v, want an error with a code of the CNI specification", err)
	}
	return failure.Code
}

func TestParseConfig(t *testing.T) {
	for name, tt := range map[string]struct {
		stdin string
		code  uint
		want  string
	}{
		"no JSON":              {`{`, types.ErrDecodingFailure, "unexpected end"},
		"a list":               {`[]`, types.ErrDecodingFailure, "cannot unmarshal"},
		"annotation no text":   {`{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a":1}}}`, types.ErrDecodingFailure, "cannot unmarshal"},
		"annotations a list":   {`{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":[]}}`, types.ErrDecodingFailure, "cannot unmarshal"},
		"prevResult no object": {`{"prevResult":[1]}`, types.ErrDecodingFailure, "prevResult must be an object"},
		"misspelt limit":       {`{"type":"imds-cni","exemptUID":[1501]}`, types.ErrInvalidNetworkConfig, `unknown key "exemptUID"`},
		"limit in other case":  {`{"type":"imds-cni","exemptuids":[1501]}`, types.ErrInvalidNetworkConfig, `unknown key "exemptuids"`},
		"limit no list":        {`{"type":"imds-cni","exemptUIDs":1501}`, types.ErrDecodingFailure, "cannot unmarshal"},
		"limit not an ID":      {`{"type":"imds-cni","exemptUIDs":[-1]}`, types.ErrDecodingFailure, "cannot unmarshal"},
		"all known keys":       {`{"cniVersion":"1.1.0","name":"n","type":"t","capabilities":{"a":true},"exemptUIDs":[],"args":{},"runtimeConfig":{},"prevResult":null,"cni.dev/valid-attachments":[]}`, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseConfig([]byte(tt.stdin))
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if got := codeOf(t, err); got != tt.code || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got code %d, %q, want %d, one line with %q", got, err, tt.code, tt.want)
			}
		})
	}
}

func TestWanted(t *testing.T) {
	sealed := cnirequest.New(8123, 2000, 2001)
	sealed.Sealed, sealed.Deny = true, []string{"168.63.129.16:80", "10.0.0.0/8"}
	for name, tt := range map[string]struct {
		annotations, entry string
		asked              bool
		uid                uint32 // 0: an error
		want               string // in the error
		code               uint
	}{
		"asks":                         {annotations: annotationsOf(asking), asked: true, uid: 1501},
		"asks, user allowed":           {annotations: annotationsOf(asking), entry: `,"exemptUIDs":[1000,1501]`, asked: true, uid: 1501},
		"asks, user not allowed":       {annotations: annotationsOf(asking), entry: `,"exemptUIDs":[1000]`, want: "exempts no process of UID 1501", code: codeRequest},
		"asks, no user allowed":        {annotations: annotationsOf(asking), entry: `,"exemptUIDs":[]`, want: "exempts no process of UID 1501", code: codeRequest},
		"sealed, no user allowed":      {annotations: annotationsOf(sealed.String()), entry: `,"exemptUIDs":[]`, asked: true, uid: 2000},
		"does not ask":                 {annotations: `{"kubernetes.io/config.seen":"now"}`},
		"asks by another name":         {annotations: `{"imds-oidc-proxy/redirect":"cni-sealed"}`},
		"no annotations":               {annotations: `{}`, want: "the runtime passed no annotations", code: types.ErrInvalidNetworkConfig},
		"null":                         {annotations: `null`, want: "the runtime passed no annotations", code: types.ErrInvalidNetworkConfig},
		"the runtime knows none":       {want: "needs the capability io.kubernetes.cri.pod-annotations", code: types.ErrInvalidNetworkConfig},
		"empty request":                {annotations: annotationsOf(""), want: "must have the exact form", code: codeRequest},
		"root":                         {annotations: annotationsOf(strings.ReplaceAll(asking, "1501", "0")), want: "must not be root's", code: codeRequest},
		"newer version":                {annotations: annotationsOf(`{"version":9}`), want: "has version 9", code: codeRequest},
		"deny no destination":          {annotations: annotationsOf(denying("example.test")), want: "must be an IPv4 address or CIDR", code: codeRequest},
		"deny a command":               {annotations: annotationsOf(denying("10.0.0.1; reboot")), want: "must be an IPv4 address or CIDR", code: codeRequest},
		"deny loopback":                {annotations: annotationsOf(denying("0.0.0.0/0")), want: "must not contain loopback", code: codeRequest},
		"deny the metadata address":    {annotations: annotationsOf(denying("169.254.0.0/16")), want: "must not contain the metadata address", code: codeRequest},
		"newlines and quotes of other": {annotations: `{"note":"a\n\"b'; c","kubernetes.io/config.seen":"now"}`},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parseConfig(stdin(t, tt.annotations, prevResult, tt.entry).StdinData)
			if err != nil {
				t.Fatal(err)
			}
			got, asked, err := c.wanted()
			if tt.want != "" {
				if code := codeOf(t, err); code != tt.code || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("got code %d, %q, want %d, one line with %q", code, err, tt.code, tt.want)
				}
				return
			}
			if err != nil || asked != tt.asked || got.UID != tt.uid {
				t.Errorf("got %+v, %t, %v, want UID %d, %t", got, asked, err, tt.uid, tt.asked)
			}
		})
	}
}

// denying returns a request that denies a destination.
func denying(destination string) string {
	r := cnirequest.New(8000, 1501, 1501)
	r.Deny = []string{destination}
	return r.String()
}

// TestWantedConfig: each field of the request is in the configuration of the redirect, and the
// metadata address is Azure's.
func TestWantedConfig(t *testing.T) {
	r := cnirequest.New(8123, 2000, 2001)
	r.Sealed, r.Deny = true, []string{"168.63.129.16:80", "10.0.0.0/8"}
	c, err := parseConfig(stdin(t, annotationsOf(r.String()), prevResult, "").StdinData)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := c.wanted()
	if err != nil {
		t.Fatal(err)
	}
	var deny []netrules.Target
	for _, s := range r.Deny {
		target, err := netrules.ParseTarget(s)
		if err != nil {
			t.Fatal(err)
		}
		deny = append(deny, target)
	}
	want := netrules.Config{Metadata: got.Metadata, ProxyPort: 8123, UID: 2000, GID: 2001, Sealed: true, Deny: deny}
	if !reflect.DeepEqual(got, want) || got.Metadata.String() != "169.254.169.254:80" {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestEntry: the plugin accepts the entry that the installer writes.
func TestEntry(t *testing.T) {
	for _, uids := range []*[]uint32{nil, {}, {1501, 2000}} {
		text, err := json.Marshal(NewEntry("imds-cni", uids))
		if err != nil {
			t.Fatal(err)
		}
		c, err := parseConfig(text)
		if err != nil || c.Type != "imds-cni" || !c.Capabilities[annotationsCapability] || !reflect.DeepEqual(c.ExemptUIDs, uids) {
			t.Errorf("%s: got %+v, %v", text, c.Entry, err)
		}
	}
}
