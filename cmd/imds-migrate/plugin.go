package main

import (
	"bytes"
	"io"
	"path/filepath"
	"regexp"
	"strings"
)

// pluginName is the name of the program as a plugin of kubectl: kubectl imds-migrate runs it.
const pluginName = "kubectl-imds_migrate"

// calledAsPlugin reports whether a path is that of the program as a plugin.
func calledAsPlugin(path string) bool {
	name := strings.ToLower(filepath.Base(path))
	return strings.TrimSuffix(name, ".exe") == pluginName
}

// ownCommand matches a command of this program in its own texts.
var ownCommand = regexp.MustCompile(`(kubectl |written by )?\bimds-migrate (` + strings.Join(append([]string{commandInject, commandUninject, commandHelp, commandVersion}, clusterCommands...), "|") + `)\b`)

// renamer replaces imds-migrate in commands by the name with which a person can call the plugin, line by
// line. Where a text is from, which the program recognizes later, stays.
type renamer struct {
	to   io.Writer
	line []byte // that has not ended
}

func (r *renamer) Write(text []byte) (int, error) {
	r.line = append(r.line, text...)
	end := bytes.LastIndexByte(r.line, '\n') + 1
	if end == 0 {
		return len(text), nil
	}
	whole := r.line[:end]
	_, err := r.to.Write(renamed(whole))
	r.line = append(r.line[:0], r.line[end:]...)
	return len(text), err
}

// flush writes a last line that has no end.
func (r *renamer) flush() {
	_, _ = r.to.Write(renamed(r.line))
	r.line = nil
}

func renamed(text []byte) []byte {
	return ownCommand.ReplaceAllFunc(text, func(found []byte) []byte {
		if !bytes.HasPrefix(found, []byte("imds-migrate")) {
			return found
		}
		return append([]byte("kubectl "), found...)
	})
}
