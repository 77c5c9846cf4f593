// Package termlog writes the cause of a failure to a container's termination log. The
// kubelet copies this file into the container's status, so that `kubectl describe pod` shows the
// cause.
//
// # Security considerations
//
// Everybody who may read the pod can read the message, so it must not contain a secret. Its text
// may come from another process of the pod: characters that are not printable, with which it could
// change the output of a terminal, are replaced.
package termlog

import (
	"os"
	"strings"
	"unicode"
)

// Path is the kubelet's default terminationMessagePath.
const Path = "/dev/termination-log"

// maxMessage is the maximum size of a message, in bytes. The kubelet discards the rest.
const maxMessage = 4096

// Write replaces the content of the file at path by the message, in one line. It does not create
// the file: if the kubelet has not created it, nothing reads it. An empty path means no file. An
// error is ignored, since the program's log has the same message.
func Write(path, message string) {
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString(oneLine(message))
}

// Clear empties the file at path: the cause of an earlier failure no longer applies.
func Clear(path string) { Write(path, "") }

// oneLine returns a message in one line of valid UTF-8 that is not too long.
func oneLine(message string) string {
	line := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, strings.ToValidUTF8(message, "?"))
	return strings.ToValidUTF8(line[:min(len(line), maxMessage)], "") // the cut may be inside a character
}
