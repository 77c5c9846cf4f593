package cnirequest_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/cnirequest"
)

// forwarding is the text for the default port and user.
const forwarding = `{"version":1,"port":8000,"uid":1501,"gid":1501,"sealed":false}`

func TestRequest(t *testing.T) {
	sealed := cnirequest.New(8123, 1501, 1502)
	sealed.Sealed, sealed.Deny = true, []string{"168.63.129.16:80", "168.63.129.16:32526"}
	for text, want := range map[string]cnirequest.Request{
		forwarding: cnirequest.New(8000, 1501, 1501),
		`{"version":1,"port":8123,"uid":1501,"gid":1502,"sealed":true,"deny":["168.63.129.16:80","168.63.129.16:32526"]}`: sealed,
	} {
		if got := want.String(); got != text {
			t.Errorf("got %s, want %s", got, text)
		}
		if got, err := cnirequest.Parse(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", text, got, err, want)
		}
	}
}

// TestRefused: only what String writes is accepted. Each error is one line of bounded length
// that quotes the value.
func TestRefused(t *testing.T) {
	const form = "must have the exact form"
	for name, tt := range map[string]struct{ text, want string }{
		"empty":              {"", form},
		"no JSON":            {"yes please", form},
		"null":               {"null", form},
		"a list":             {"[" + forwarding + "]", form},
		"trailing data":      {forwarding + forwarding, form},
		"white space":        {" " + forwarding, form},
		"a line break":       {strings.Replace(forwarding, ",", ",\n", 1), form},
		"unknown field":      {strings.Replace(forwarding, "}", `,"mark":1}`, 1), form},
		"field in capitals":  {strings.Replace(forwarding, "port", "Port", 1), form},
		"field twice":        {strings.Replace(forwarding, "{", `{"uid":1000,`, 1), form},
		"no version":         {strings.Replace(forwarding, `"version":1,`, "", 1), form},
		"version zero":       {strings.Replace(forwarding, `"version":1`, `"version":0`, 1), form},
		"version below zero": {strings.Replace(forwarding, `"version":1`, `"version":-1`, 1), form},
		"newer version":      {strings.Replace(forwarding, `"version":1`, `"version":2`, 1), "has version 2, and this CNI plugin knows version 1"},
		"no port":            {strings.Replace(forwarding, `"port":8000,`, "", 1), form},
		"port as text":       {strings.Replace(forwarding, "8000", `"8000"`, 1), form},
		"port zero":          {strings.Replace(forwarding, "8000", "0", 1), "port must be between 1 and 65535"},
		"port too high":      {strings.Replace(forwarding, "8000", "65536", 1), form},
		"port as a fraction": {strings.Replace(forwarding, "8000", "8e3", 1), form},
		"uid negative":       {strings.Replace(forwarding, `"uid":1501`, `"uid":-1`, 1), form},
		"uid root":           {strings.Replace(forwarding, `"uid":1501`, `"uid":0`, 1), "uid and gid must not be root's"},
		"gid root":           {strings.Replace(forwarding, `"gid":1501`, `"gid":0`, 1), "uid and gid must not be root's"},
		"uid too high":       {strings.Replace(forwarding, `"uid":1501`, `"uid":2147483648`, 1), "at most 2147483647"},
		"gid overflows":      {strings.Replace(forwarding, `"gid":1501`, `"gid":4294967296`, 1), form},
		"sealed as text":     {strings.Replace(forwarding, "false", `"false"`, 1), form},
		"deny empty":         {strings.Replace(forwarding, "}", `,"deny":[]}`, 1), form},
		"deny no list":       {strings.Replace(forwarding, "}", `,"deny":"192.0.2.1"}`, 1), form},
		"deny 17 times":      {strings.Replace(forwarding, "}", `,"deny":[`+strings.Repeat(`"192.0.2.1",`, 16)+`"192.0.2.1"]}`, 1), "at most 16 destinations"},
		"too long":           {strings.Replace(forwarding, "}", `,"deny":["`+strings.Repeat("x", 1000)+`"]}`, 1), "at most 1024 bytes"},
		"longest":            {strings.Repeat("x", 1024), form},
		"longer by one":      {strings.Repeat("x", 1025), "at most 1024 bytes"},
		"long and no JSON":   {strings.Repeat("\n", 100<<10), "at most 1024 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := cnirequest.Parse(tt.text)
			if err == nil {
				t.Fatalf("got %+v, want an error", got)
			}
			if text := err.Error(); !strings.Contains(text, tt.want) || strings.Contains(text, "\n") || len(text) > 700 {
				t.Errorf("got %q, want one short line with %q", text, tt.want)
			}
			if !reflect.DeepEqual(got, cnirequest.Request{}) {
				t.Errorf("got %+v beside the error", got)
			}
		})
	}
}

// TestLargestRequest: the largest number of destinations, each of the longest form, fits.
func TestLargestRequest(t *testing.T) {
	r := cnirequest.New(65535, 1<<31-1, 1<<31-1)
	for i := range 16 {
		r.Deny = append(r.Deny, fmt.Sprintf("255.255.255.%d/32:65535", 100+i))
	}
	if got, err := cnirequest.Parse(r.String()); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("got %+v, %v, want %+v", got, err, r)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(forwarding)
	f.Add(`{"version":1,"port":1,"uid":1,"gid":1,"sealed":true,"deny":["192.0.2.1"]}`)
	f.Add(`{"version":2}`)
	f.Fuzz(func(t *testing.T, text string) {
		r, err := cnirequest.Parse(text)
		if err == nil && (r.String() != text || r.UID == 0 || r.GID == 0 || r.Port == 0) {
			t.Errorf("accepted %q as %+v", text, r)
		}
	})
}
