package flagenv

import (
	"errors"
	"fmt"
	"strings"
)

// Error describes what is wrong with one flag, or with several flags together.
type Error struct {
	// Flags are their names, without dashes.
	Flags []string

	// Reason follows the names: "is required", or a quoted value and what it must be.
	Reason string

	name func(flag string) string // nil: two dashes and the name
}

// Errorf returns an [*Error] about one flag.
func Errorf(flag, format string, args ...any) error {
	return &Error{Flags: []string{flag}, Reason: fmt.Sprintf(format, args...)}
}

// Required returns an [*Error] that names all missing flags. The hint follows the message,
// such as ", for example 1.2.3.4". Required returns nil if no flag is missing.
func Required(missing []string, hint string) error {
	switch len(missing) {
	case 0:
		return nil
	case 1:
		return &Error{Flags: missing, Reason: "is required" + hint}
	}
	return &Error{Flags: missing, Reason: "are required" + hint}
}

// Error returns one line, such as `--proxy-port (PROXY_PORT) "0": must be between 1 and 65535`.
func (e *Error) Error() string {
	names := make([]string, len(e.Flags))
	for i, flag := range e.Flags {
		names[i] = "--" + flag
		if e.name != nil {
			names[i] = e.name(flag)
		}
	}
	last := len(names) - 1
	if last < 1 {
		return strings.Join(names, "") + " " + e.Reason
	}
	return strings.Join(names[:last], ", ") + " and " + names[last] + " " + e.Reason
}

// list is several errors in one line.
type list []error

// Join returns one error in one line for all errs that are not nil, or nil if all are nil.
func Join(errs ...error) error {
	var all list
	for _, err := range errs {
		if err != nil {
			all = append(all, err)
		}
	}
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return all
}

func (l list) Error() string {
	texts := make([]string, len(l))
	for i, err := range l {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (l list) Unwrap() []error { return l }

// Named adds the environment variables to the flags of an [*Error], and to those of each one
// in a [Join]. It returns other errors unchanged.
func (s *Set) Named(err error) error {
	if all, ok := errors.AsType[list](err); ok {
		named := make([]error, len(all))
		for i, err := range all {
			named[i] = s.Named(err)
		}
		return Join(named...)
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	return &Error{e.Flags, e.Reason, s.bothNames}
}

// bothNames returns a flag and its variable: --proxy-port (PROXY_PORT).
func (s *Set) bothNames(flag string) string {
	if variable := s.Variable(flag); variable != "" {
		return "--" + flag + " (" + variable + ")"
	}
	return "--" + flag
}
