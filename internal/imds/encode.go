package imds

import (
	"strconv"
	"time"
	"unicode/utf8"

	"imds-oidc-proxy/internal/exchange"
)

// appendToken appends the body of a success, byte for byte as clients rely on
// it: one line, no white space, every value a string, in this order. Some of
// them look for substrings (mssql-jdbc, SqlClient), some split at a name
// (azcopy), some read one line (Java). encoding/json would do the same more
// slowly, and would escape the & of a resource.
func appendToken(b []byte, clientID, resource string, token exchange.Token, now time.Time) []byte {
	expiresIn := int64(token.ExpiresOn.Sub(now) / time.Second)

	b = append(b, `{"access_token":`...)
	b = appendJSONString(b, token.AccessToken)
	b = append(b, `,"client_id":`...)
	b = appendJSONString(b, clientID)
	b = append(b, `,"expires_in":"`...)
	b = strconv.AppendInt(b, expiresIn, 10)
	b = append(b, `","expires_on":"`...)
	b = strconv.AppendInt(b, token.ExpiresOn.Unix(), 10)
	b = append(b, `","ext_expires_in":"`...)
	b = strconv.AppendInt(b, expiresIn, 10)
	b = append(b, `","not_before":"`...)
	b = strconv.AppendInt(b, token.NotBefore.Unix(), 10)
	b = append(b, `","resource":`...)
	b = appendJSONString(b, resource)
	return append(b, `,"token_type":"Bearer"}`...)
}

// appendError appends the body of an error: always these two members, both strings.
func appendError(b []byte, code, description string) []byte {
	b = append(b, `{"error":`...)
	b = appendJSONString(b, code)
	b = append(b, `,"error_description":`...)
	b = appendJSONString(b, description)
	return append(b, '}')
}

// appendJSONString appends s as a JSON string (RFC 8259, section 7). It escapes
// only what must be: msal-node and Python compare the resource with what they
// asked for, some of them before decoding.
func appendJSONString(b []byte, s string) []byte {
	b = append(b, '"')
	for {
		n := plainPrefix(s)
		b = append(b, s[:n]...)
		if s = s[n:]; s == "" {
			return append(b, '"')
		}
		b, s = appendFirst(b, s)
	}
}

// plainPrefix returns how many bytes at the start of s are ASCII that stands for
// itself in a JSON string. Access tokens are nothing else, two kilobytes of it, so
// it looks at eight bytes at a time: a high bit of suspect is set for each byte
// that is above ASCII, below space, a quote or a backslash (and for some that
// follow one, which does no harm).
func plainPrefix(s string) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	n := 0
	for ; n <= len(s)-8; n += 8 {
		p := s[n : n+8]
		v := uint64(p[0]) | uint64(p[1])<<8 | uint64(p[2])<<16 | uint64(p[3])<<24 |
			uint64(p[4])<<32 | uint64(p[5])<<40 | uint64(p[6])<<48 | uint64(p[7])<<56
		suspect := v | (v - ones*' ') | ((v ^ ones*'"') - ones) | ((v ^ ones*'\\') - ones)
		if suspect&highs != 0 {
			break
		}
	}
	for n < len(s) && ' ' <= s[n] && s[n] < utf8.RuneSelf && s[n] != '"' && s[n] != '\\' {
		n++
	}
	return n
}

// appendFirst appends the first character of s, escaped where it must be, and
// returns what is left of s.
func appendFirst(b []byte, s string) ([]byte, string) {
	if s[0] < utf8.RuneSelf {
		return appendEscaped(b, s[0]), s[1:]
	}
	r, size := utf8.DecodeRuneInString(s)
	return utf8.AppendRune(b, r), s[size:] // U+FFFD for what is not UTF-8
}

func appendEscaped(b []byte, c byte) []byte {
	const hex = "0123456789abcdef"
	if c == '"' || c == '\\' {
		return append(b, '\\', c)
	}
	return append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
}
