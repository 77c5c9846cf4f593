package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// newerYAML matches the directive of YAML 1.2. The parser refuses this version number, although it
// supports the syntax.
var newerYAML = regexp.MustCompile(`(?m)^(\x{FEFF}?%YAML[ \t]+)1\.2`)

// booleans are the booleans of YAML 1.1. For this parser some of them are strings, but not for
// kubectl's library.
var booleans = map[string]bool{
	"y": true, "Y": true, "yes": true, "Yes": true, "YES": true,
	"on": true, "On": true, "ON": true,
	"true": true, "True": true, "TRUE": true,
	"n": false, "N": false, "no": false, "No": false, "NO": false,
	"off": false, "Off": false, "OFF": false,
	"false": false, "False": false, "FALSE": false,
}

// shortTag returns the tag of a value as in kubectl's library.
func shortTag(tree *yaml.Node) string {
	const plain yaml.Style = 0
	if _, known := booleans[tree.Value]; known && tree.Kind == yaml.ScalarNode && tree.Style == plain {
		return "!!bool"
	}
	return tree.ShortTag()
}

// forParser returns the text in a form that the parser accepts, with the same lines.
func forParser(text []byte) []byte {
	content := bytes.TrimPrefix(text, byteOrderMark)
	if bytes.HasPrefix(bytes.TrimLeft(content, " \t\r\n"), []byte("{")) && json.Valid(content) {
		return plainEscapes(content)
	}
	return newerYAML.ReplaceAll(text, []byte("${1}1.1"))
}

// plainEscapes returns JSON in a form that the parser accepts. It replaces the escapes that the
// parser does not support, \/ and surrogate pairs, and escapes characters that the parser refuses
// or treats as line breaks. In valid JSON both occur only in strings.
func plainEscapes(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRune(text[i:])
		switch pair, length := surrogates(text[i:]); {
		case length > 0:
			out, size = utf8.AppendRune(out, pair), length
		case bytes.HasPrefix(text[i:], []byte(`\/`)):
			out, size = append(out, '/'), 2
		case r == '\\' && i+1 < len(text):
			size = 2
			out = append(out, text[i:i+size]...)
		case beyondYAML(r):
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			out = append(out, text[i:i+size]...)
		}
		i += size
	}
	return out
}

// beyondYAML reports whether a character that JSON allows in a string is a line break in YAML, or
// is allowed there only as an escape.
func beyondYAML(r rune) bool {
	return r >= 0x7f && r <= 0x9f || strings.ContainsRune("\u2028\u2029\ufeff\ufffe\uffff", r)
}

// surrogates decodes a surrogate pair such as \uD83D\uDE00. Like encoding/json, it returns U+FFFD for
// half a pair.
func surrogates(text []byte) (r rune, size int) {
	const escape = len(`\u0000`)
	high, ok := unicodeEscape(text)
	if !ok || !utf16.IsSurrogate(high) {
		return 0, 0
	}
	if low, ok := unicodeEscape(text[escape:]); ok {
		if r := utf16.DecodeRune(high, low); r != utf8.RuneError {
			return r, 2 * escape
		}
	}
	return utf8.RuneError, escape
}

func unicodeEscape(text []byte) (rune, bool) {
	if len(text) < len(`\u0000`) || text[0] != '\\' || text[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	return rune(n), err == nil
}
