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

// The parser speaks YAML 1.1 and takes no other number, though it reads what 1.2 has.
var newerYAML = regexp.MustCompile(`(?m)^(\x{FEFF}?%YAML[ \t]+)1\.2`)

// booleans are YAML 1.1's, which the parser takes for strings and kubectl's library does
// not.
var booleans = map[string]bool{
	"y": true, "Y": true, "yes": true, "Yes": true, "YES": true,
	"on": true, "On": true, "ON": true,
	"true": true, "True": true, "TRUE": true,
	"n": false, "N": false, "no": false, "No": false, "NO": false,
	"off": false, "Off": false, "OFF": false,
	"false": false, "False": false, "FALSE": false,
}

// shortTag is the type of a value, as kubectl's library has it.
func shortTag(tree *yaml.Node) string {
	const plain yaml.Style = 0
	if _, known := booleans[tree.Value]; known && tree.Kind == yaml.ScalarNode && tree.Style == plain {
		return "!!bool"
	}
	return tree.ShortTag()
}

// forParser writes a text as the parser takes it: lines stay where they are.
func forParser(text []byte) []byte {
	content := bytes.TrimPrefix(text, byteOrderMark)
	if bytes.HasPrefix(bytes.TrimLeft(content, " \t\r\n"), []byte("{")) && json.Valid(content) {
		return plainEscapes(content)
	}
	return newerYAML.ReplaceAll(text, []byte("${1}1.1"))
}

// plainEscapes writes JSON as the parser reads it: without the escapes that it does not
// know, \/ and pairs of surrogates, and with escapes for what it takes for no character
// or for the end of a line. Both are found in strings only.
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

// beyondYAML tells what YAML takes for a line break, or allows only as an escape, of what
// JSON allows in a string.
func beyondYAML(r rune) bool {
	return r >= 0x7f && r <= 0x9f || strings.ContainsRune("\u2028\u2029\ufeff\ufffe\uffff", r)
}

// surrogates decodes \uD83D\uDE00. Half a pair is what encoding/json makes of it.
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
