package imds_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// clientParser parses the body of a successful answer as the strictest version of a client
// does. It returns the access token and its expiry as the client understands it.
type clientParser struct {
	client string
	parse  func(body []byte) (token string, expires time.Time, err error)
}

// clientParsers are reimplementations of parsers in the clients' source code.
var clientParsers = []clientParser{
	{"mssql-jdbc 8.3 to 11.2: one readLine, substrings", func(body []byte) (string, time.Time, error) {
		line, err := bufio.NewReader(bytes.NewReader(append(body, "\nlost"...))).ReadString('\n')
		if err != nil {
			return "", time.Time{}, err
		}
		token, err := between(line, `"access_token":"`)
		if err != nil {
			return "", time.Time{}, err
		}
		if kind, err := between(line, `"token_type":"`); kind != "Bearer" {
			return "", time.Time{}, fmt.Errorf("token_type %q, %v", kind, err)
		}
		seconds, err := between(line, `"expires_in":"`)
		return after(token, seconds, err)
	}},
	{"Microsoft.Data.SqlClient: offsets from the first mention of a name", func(body []byte) (string, time.Time, error) {
		const tokenName, expiryName, gap, digits = "access_token", "expires_on", len(`":"`), 10
		s := string(body)
		start := strings.Index(s, tokenName) + len(tokenName) + gap
		end := start + strings.IndexByte(s[start:], '"')
		expiry := strings.Index(s, expiryName) + len(expiryName) + gap
		return at(s[start:end], s[expiry:expiry+digits])
	}},
	{"azcopy 10.13 to 10.20: looks behind the opening quote of not_before", func(body []byte) (string, time.Time, error) {
		parts := strings.Split(string(body), `"not_before":"`)
		if len(parts) != 2 {
			return "", time.Time{}, errors.New("index out of range")
		}
		if parts[1][0] == '"' {
			return "", time.Time{}, errors.New("not_before is blank")
		}
		return adal(body)
	}},
	{"go-autorest adal: numbers in strings", adal},
	{"Rust azure_identity: strings only, and all of them required", func(body []byte) (string, time.Time, error) {
		var m map[string]any
		if err := json.Unmarshal(body, &m); err != nil {
			return "", time.Time{}, err
		}
		for _, name := range []string{"access_token", "expires_on", "token_type", "resource"} {
			if _, ok := m[name].(string); !ok {
				return "", time.Time{}, fmt.Errorf("%s is %T", name, m[name])
			}
		}
		return at(m["access_token"].(string), m["expires_on"].(string))
	}},
	{"MSAL.NET: two names for one property, the last one wins", func(body []byte) (string, time.Time, error) {
		decoder := json.NewDecoder(bytes.NewReader(body))
		var token, expiry, name string
		for {
			t, err := decoder.Token()
			if err != nil {
				return at(token, expiry)
			}
			value, ok := t.(string)
			switch {
			case !ok:
			case name == "":
				name = value
			default:
				switch name {
				case "access_token":
					token = value
				case "expires_in", "expires_on":
					expiry = value
				}
				name = ""
			}
		}
	}},
	{"azidentity up to 1.8, Node 1.0, MSAL Python: expires_in", func(body []byte) (string, time.Time, error) {
		var m map[string]string // so every value must be a string
		if err := json.Unmarshal(body, &m); err != nil {
			return "", time.Time{}, err
		}
		return after(m["access_token"], m["expires_in"], nil)
	}},
	{"Python azure-identity 1.13: every number through int()", func(body []byte) (string, time.Time, error) {
		var m map[string]string
		if err := json.Unmarshal(body, &m); err != nil {
			return "", time.Time{}, err
		}
		if _, present := m["refresh_in"]; present {
			return "", time.Time{}, errors.New("TypeError: refresh_in is a string")
		}
		if _, err := strconv.Atoi(m["ext_expires_in"]); err != nil {
			return "", time.Time{}, err
		}
		return at(m["access_token"], m["expires_on"])
	}},
}

func between(s, before string) (string, error) {
	_, rest, found := strings.Cut(s, before)
	value, _, closed := strings.Cut(rest, `"`)
	if !found || !closed {
		return "", fmt.Errorf("no %s", before)
	}
	return value, nil
}

func after(token, seconds string, err error) (string, time.Time, error) {
	if err != nil {
		return "", time.Time{}, err
	}
	n, err := strconv.Atoi(seconds)
	return token, epoch.Add(time.Duration(n) * time.Second), err
}

func at(token, unix string) (string, time.Time, error) {
	n, err := strconv.ParseInt(unix, 10, 64)
	return token, time.Unix(n, 0), err
}

func adal(body []byte) (string, time.Time, error) {
	var m struct {
		AccessToken string      `json:"access_token"`
		ExpiresIn   json.Number `json:"expires_in"`
		ExpiresOn   json.Number `json:"expires_on"`
		NotBefore   json.Number `json:"not_before"`
		Resource    string      `json:"resource"`
		Type        string      `json:"token_type"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return "", time.Time{}, err
	}
	for _, n := range []json.Number{m.ExpiresIn, m.NotBefore} {
		if _, err := n.Int64(); err != nil {
			return "", time.Time{}, err
		}
	}
	return at(m.AccessToken, m.ExpiresOn.String())
}

// TestClientParsers: every client's parser finds the token and its expiry.
func TestClientParsers(t *testing.T) {
	body := get(newHandler(t, config(&tokenSource{})), tokenPath+"?resource="+vault).Body.Bytes()
	for _, p := range clientParsers {
		t.Run(p.client, func(t *testing.T) {
			token, expires, err := p.parse(bytes.Clone(body))
			want := epoch.Add(tokenLife).Truncate(time.Second)
			if err != nil || token != "token-of-"+defaultID || !expires.Equal(want) {
				t.Errorf("got %q until %v (%v), want until %v", token, expires, err, want)
			}
		})
	}
}

// TestClientParsersAreStrict: the parsers here fail on bodies on which the clients fail.
func TestClientParsersAreStrict(t *testing.T) {
	good := get(newHandler(t, config(&tokenSource{})), tokenPath+"?resource="+vault).Body.String()
	for _, test := range []struct {
		client, from, to string
	}{
		{"mssql-jdbc", `"expires_in":"3600"`, `"expires_in":3600`},
		{"mssql-jdbc", `,"token_type"`, "\n,\"token_type\""},
		{"Microsoft.Data.SqlClient", `"expires_on":"1605155624"`, `"expires_on": "1605155624"`},
		{"azcopy", `"not_before":"1605152024",`, ``},
		{"go-autorest", `"not_before":"1605152024"`, `"not_before":""`},
		{"Rust", `"expires_on":"1605155624"`, `"expires_on":1605155624`},
		{"Rust", `"resource"`, `"resources"`},
		{"MSAL.NET", `"expires_in":"3600","expires_on":"1605155624"`, `"expires_on":"1605155624","expires_in":"3600"`},
		{"azidentity", `"expires_in":"3600"`, `"expires_in":""`},
		{"Python", `"ext_expires_in":"3600"`, `"ext_expires_in":""`},
	} {
		t.Run(test.client+" "+test.to, func(t *testing.T) {
			bad := strings.Replace(good, test.from, test.to, 1)
			if bad == good {
				t.Fatalf("%q is not in the body", test.from)
			}
			for _, p := range clientParsers {
				if !strings.HasPrefix(p.client, test.client) {
					continue
				}
				_, expires, err := p.parse([]byte(bad))
				if err == nil && expires.Equal(epoch.Add(tokenLife).Truncate(time.Second)) {
					t.Errorf("%s accepts it", p.client)
				}
			}
		})
	}
}
