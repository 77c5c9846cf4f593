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

// tokenBodyOverhead is the room that appendToken needs beside the access token
// and the resource, with some to spare.
const tokenBodyOverhead = 256

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
	plain := 0 // start of the bytes that stand for themselves
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if c < ' ' || c == '"' || c == '\\' {
				b = appendEscaped(append(b, s[plain:i]...), c)
				plain = i + 1
			}
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			b = append(append(b, s[plain:i]...), `\ufffd`...)
			plain = i + 1
		}
		i += size
	}
	return append(append(b, s[plain:]...), '"')
}

func appendEscaped(b []byte, c byte) []byte {
	const hex = "0123456789abcdef"
	if c == '"' || c == '\\' {
		return append(b, '\\', c)
	}
	return append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
}
