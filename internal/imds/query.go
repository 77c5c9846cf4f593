package imds

import (
	"net/url"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// maxParams bounds the work of looking for names given twice. Real clients send
// at most five parameters.
const maxParams = 32

// param is one decoded name and value of a query.
type param struct{ name, value string }

// appendParams decodes a raw query and appends its parameters to params. It
// refuses what two parsers could read in two ways: a name given twice, a bare
// semicolon (a separator to some), and malformed escapes.
func appendParams(params []param, rawQuery string) ([]param, error) {
	if strings.IndexByte(rawQuery, ';') >= 0 {
		return nil, errMalformedQuery
	}
	for rawQuery != "" {
		var pair string
		pair, rawQuery, _ = strings.Cut(rawQuery, "&")
		if pair == "" {
			continue
		}
		p, err := decodePair(pair)
		if err != nil {
			return nil, err
		}
		if hasParam(params, p.name) {
			return nil, errDuplicateParam
		}
		if len(params) == maxParams {
			return nil, errMalformedQuery
		}
		params = append(params, p)
	}
	return params, nil
}

func decodePair(pair string) (param, error) {
	rawName, rawValue, _ := strings.Cut(pair, "=")
	name, err := url.QueryUnescape(rawName)
	if err != nil {
		return param{}, errMalformedQuery
	}
	value, err := url.QueryUnescape(rawValue)
	if err != nil {
		return param{}, errMalformedQuery
	}
	return param{name, value}, nil
}

// hasParam compares without case: a parser that folds names would see the name twice.
func hasParam(params []param, name string) bool {
	for _, p := range params {
		if azure.EqualFoldASCII(p.name, name) {
			return true
		}
	}
	return false
}

// encodeParams writes a query anew from what was understood of it, so that no
// byte of the caller's spelling is forwarded.
func encodeParams(params []param) string {
	var b strings.Builder
	for i, p := range params {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(escapeParam(p.name))
		b.WriteByte('=')
		b.WriteString(escapeParam(p.value))
	}
	return b.String()
}

// escapeParam spells a space as %20, which every parser reads as a space; + is
// read as a plus sign by some.
func escapeParam(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// apiVersions returns the versions that IMDS documents, oldest first.
func apiVersions() []string {
	return []string{
		"2017-03-01", "2017-04-02", "2017-08-01", "2017-10-01", "2017-12-01",
		"2018-02-01", "2018-04-02", "2018-10-01",
		"2019-02-01", "2019-03-11", "2019-04-30", "2019-06-01", "2019-06-04",
		"2019-08-01", "2019-08-15", "2019-11-01",
		"2020-06-01", "2020-07-15", "2020-09-01", "2020-10-01", "2020-12-01",
		"2021-01-01", "2021-02-01", "2021-03-01", "2021-05-01", "2021-08-01", "2021-10-01",
		"2021-11-01", "2021-11-15", "2021-12-13",
		"2023-07-01", "2023-11-15", "2024-03-15", "2024-07-17", "2025-04-07",
	}
}

// knownVersion reports whether the token endpoint takes an api-version: what
// SDKs send first, then what old scripts send, then the documented ones.
func knownVersion(v string) bool {
	if v == "2018-02-01" || v == "2017-09-01" {
		return true
	}
	for _, known := range apiVersions() {
		if v == known {
			return true
		}
	}
	return false
}
