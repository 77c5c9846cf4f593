// Package flagenv reads a program's flags, and for each flag that is not given its
// environment variable. Every program reads its settings with it, so that the same text
// means the same in all of them, and errors have one form.
//
//	flags := flagenv.New("proxy", flagenv.Prefix("PROXY_", "probe"))
//	flagenv.Var(flags.FlagSet, &port, "proxy-port", azure.ParsePort, "port to listen on")
//	err := flags.Parse(args, getenv) // --proxy-port (PROXY_PORT) "0": must be between 1 and 65535
//
// A flag wins over its variable, which wins over the default. A variable that is empty
// counts as not set. So does a variable that Kubernetes makes for a Service: a Service of
// the name proxy gives PROXY_PORT=tcp://10.0.0.7:80 to the pods of its namespace.
package flagenv

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/azure"
)

// Set is the flags of one program.
type Set struct {
	*pflag.FlagSet

	// Arguments allows arguments that are not flags. False: they are refused.
	Arguments bool

	program  string
	variable func(flag string) string
}

// New returns a set without flags. The function variable names the environment variable of
// a flag; it returns "" for flags that have none. Nil: no flag has one.
func New(program string, variable func(flag string) string) *Set {
	flags := pflag.NewFlagSet(program, pflag.ContinueOnError)
	flags.SortFlags = false
	flags.SetOutput(io.Discard)
	return &Set{FlagSet: flags, program: program, variable: variable}
}

// Prefix names variables after their flags, behind a prefix such as PROXY_. The flags
// named in flagOnly have no variable, and neither have --version and --help: they choose
// what one run does, and a variable would choose it for every program of a pod.
func Prefix(prefix string, flagOnly ...string) func(flag string) string {
	none := map[string]bool{"version": true, "help": true}
	for _, flag := range flagOnly {
		none[flag] = true
	}
	return func(flag string) string {
		if none[flag] {
			return ""
		}
		return prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
	}
}

// Variable returns the environment variable of a flag. Empty: it has none.
func (s *Set) Variable(flag string) string {
	if s.variable == nil {
		return ""
	}
	return s.variable(flag)
}

// Parse reads the arguments, then the environment. The error is [pflag.ErrHelp], or one line
// that names the flag.
func (s *Set) Parse(args []string, getenv func(string) string) error {
	if err := s.FlagSet.Parse(args); err != nil {
		invalid, ok := errors.AsType[*pflag.InvalidValueError](err)
		switch {
		case ok:
			return s.invalid(invalid.GetFlag(), invalid.GetValue(), invalid.Unwrap())
		case errors.Is(err, pflag.ErrHelp):
			return err
		}
		return fmt.Errorf("%w (see %s --help)", err, s.program)
	}
	if s.NArg() > 0 && !s.Arguments {
		return fmt.Errorf("unexpected argument %q: %s takes flags only (see %[2]s --help)", s.Arg(0), s.program)
	}
	return s.readEnvironment(getenv)
}

func (s *Set) readEnvironment(getenv func(string) string) error {
	var err error
	s.VisitAll(func(f *pflag.Flag) {
		variable := s.Variable(f.Name)
		if err != nil || f.Changed || variable == "" {
			return
		}
		value := getenv(variable)
		if value == "" || isServiceLink(value) {
			return
		}
		if f.Value.Type() == "string" { // other types refuse several lines, or allow them
			value = strings.TrimRight(value, "\r\n")
			if strings.ContainsAny(value, "\r\n") {
				err = s.invalid(f, value, azure.Invalid(value, "must be one line"))
				return
			}
		}
		if cause := f.Value.Set(value); cause != nil {
			err = s.invalid(f, value, cause)
		}
	})
	return err
}

func isServiceLink(value string) bool {
	scheme, _, found := strings.Cut(value, "://")
	return found && (scheme == "tcp" || scheme == "udp" || scheme == "sctp")
}

// invalid says what is wrong with a flag's value. Pflag's own texts name a function of Go.
func (s *Set) invalid(f *pflag.Flag, value string, cause error) error {
	switch f.Value.Type() {
	case "bool":
		cause = azure.Invalid(value, "must be true or false")
	case "duration":
		cause = azure.Invalid(value, "must be a duration, such as 10s")
	}
	if _, quoted := errors.AsType[*azure.Error](cause); !quoted {
		cause = azure.Invalid(value, cause.Error())
	}
	return s.Named(&Error{Flags: []string{f.Name}, Reason: cause.Error()})
}

// Error says what is wrong with one flag, or with several together.
type Error struct {
	// Flags are their names, without dashes.
	Flags []string

	// Reason follows the names: "is required", or a quoted value and what it must be.
	Reason string

	name func(flag string) string // nil: the name alone
}

// Errorf returns an [*Error] about one flag.
func Errorf(flag, format string, args ...any) error {
	return &Error{Flags: []string{flag}, Reason: fmt.Sprintf(format, args...)}
}

// Required returns an [*Error] that says of all missing flags that they are required. The
// hint follows, such as ", for example 1.2.3.4". Nil: no flag is missing.
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
	return strings.Join(names, " and ") + " " + e.Reason
}

// Named adds the environment variables to the flags of an [*Error]. It returns other errors
// as they are.
func (s *Set) Named(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return err
	}
	return &Error{e.Flags, e.Reason, s.bothNames}
}

// bothNames returns a flag with its variable: --proxy-port (PROXY_PORT).
func (s *Set) bothNames(flag string) string {
	if variable := s.Variable(flag); variable != "" {
		return "--" + flag + " (" + variable + ")"
	}
	return "--" + flag
}
