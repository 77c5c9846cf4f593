// Package flagenv defines and parses the flags of a program, and reads the environment
// variable of each flag that is not given. All programs use it, so that a value has the same
// meaning and an error the same form in all of them.
//
//	flags := flagenv.New("proxy", flagenv.Prefix("PROXY_", "probe"))
//	flags.Group("Ports")
//	flagenv.Var(flags.FlagSet, &port, "proxy-port", azure.ParsePort, "port to listen on")
//	err := flags.Parse(args, getenv) // --proxy-port (PROXY_PORT) "0": must be between 1 and 65535
//
// A flag takes precedence over its variable, and the variable over the default. An empty
// variable counts as not set. So does a variable that Kubernetes sets for a Service: a
// Service named proxy adds PROXY_PORT=tcp://10.0.0.7:80 to the pods of its namespace.
package flagenv

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/azure"
)

// Set is the set of flags of one program.
type Set struct {
	*pflag.FlagSet

	// Arguments allows arguments that are not flags. Otherwise Parse returns an error for them.
	Arguments bool

	// Commands are words that the program accepts as its first argument, before Parse is
	// called. Parse only suggests them for a misspelled one. It may be nil.
	Commands []string

	program  string
	variable func(flag string) string
	groups   []group
}

// group is a title for the flags from an index on, in the order of their definition.
type group struct {
	title string
	first int
}

// New returns an empty set. The function variable returns the name of a flag's environment
// variable, or "" for a flag without one. If name is nil, no flag has a variable.
func New(program string, variable func(flag string) string) *Set {
	flags := pflag.NewFlagSet(program, pflag.ContinueOnError)
	flags.SortFlags = false
	flags.SetOutput(io.Discard)
	return &Set{FlagSet: flags, program: program, variable: variable}
}

// Prefix returns a function that names each variable after its flag: --log-level with the
// prefix PROXY_ has PROXY_LOG_LEVEL. The flags in flagOnly have no variable, and neither have
// --version and --help: they choose what one run does, and a variable would choose it for
// every program in a pod.
func Prefix(prefix string, flagOnly ...string) func(flag string) string {
	none := append([]string{"version", "help"}, flagOnly...)
	return func(flag string) string {
		if slices.Contains(none, flag) {
			return ""
		}
		return prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
	}
}

// Variable returns the environment variable of a flag, or "" if it has none.
func (s *Set) Variable(flag string) string {
	if s.variable == nil {
		return ""
	}
	return s.variable(flag)
}

// Group starts a group of flags: [Set.VisitGroups] lists the flags that are defined after
// this call, until the next one, under the title. A title that was used before continues
// that group.
func (s *Set) Group(title string) {
	defined := 0
	s.VisitAll(func(*pflag.Flag) { defined++ })
	s.groups = append(s.groups, group{title, defined})
}

// VisitGroups calls fn for each group that has flags, in the order in which the groups were
// started. Flags before the first group are in a group named Flags.
func (s *Set) VisitGroups(fn func(title string, flags *pflag.FlagSet)) {
	groups := append([]group{{title: "Flags"}}, s.groups...)
	flags := map[string]*pflag.FlagSet{}
	index, current := 0, 0
	s.VisitAll(func(f *pflag.Flag) {
		for current+1 < len(groups) && groups[current+1].first <= index {
			current++
		}
		index++
		title := groups[current].title
		if flags[title] == nil {
			flags[title] = pflag.NewFlagSet("", pflag.ContinueOnError)
			flags[title].SortFlags = false
		}
		flags[title].AddFlag(f)
	})
	for _, g := range groups {
		if flags[g.title] != nil {
			fn(g.title, flags[g.title])
			delete(flags, g.title)
		}
	}
}

// Usages returns the flags for the text of --help: for each group its title, and one line for
// each flag.
func (s *Set) Usages() string {
	var b strings.Builder
	s.VisitGroups(func(title string, flags *pflag.FlagSet) {
		if usages := flags.FlagUsages(); usages != "" { // there may be hidden flags only
			b.WriteString("\n" + title + ":\n" + usages)
		}
	})
	return b.String()
}

// Parse parses the arguments, then the environment. The error is [pflag.ErrHelp], or one line
// that names the flag.
func (s *Set) Parse(args []string, getenv func(string) string) error {
	if err := s.FlagSet.Parse(args); err != nil {
		return s.explain(err)
	}
	if s.NArg() > 0 && !s.Arguments {
		return s.unexpected(s.Arg(0))
	}
	return s.readEnvironment(getenv)
}

// explain returns an error of pflag in the form of this package.
func (s *Set) explain(err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return s.invalid(invalid.GetFlag(), invalid.GetValue(), invalid.Unwrap())
	}
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if near := Nearest(unknown.GetSpecifiedName(), s.names()...); near != "" {
			return fmt.Errorf("%w (did you mean --%s?)", err, near)
		}
	}
	return fmt.Errorf("%w (see %s --help)", err, s.program)
}

// unexpected returns the error for an argument that is not a flag.
func (s *Set) unexpected(argument string) error {
	if near := Nearest(argument, s.Commands...); near != "" {
		return UnknownCommand(argument, s.Commands...)
	}
	if near := Nearest(argument, s.names()...); near != "" {
		return fmt.Errorf("unexpected argument %q: did you mean --%s?", argument, near)
	}
	return fmt.Errorf("unexpected argument %q: %s takes flags only (see %[2]s --help)", argument, s.program)
}

// names returns the names of the flags that --help lists.
func (s *Set) names() []string {
	var names []string
	s.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	return names
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
		if f.Value.Type() == "string" { // the parsers of other types refuse line breaks, or accept them
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

// isServiceLink reports whether Kubernetes made the value for a Service.
func isServiceLink(value string) bool {
	scheme, _, found := strings.Cut(value, "://")
	return found && (scheme == "tcp" || scheme == "udp" || scheme == "sctp")
}

// invalid returns the error for the value of a flag. It replaces pflag's own texts for
// booleans and durations, which name a function of Go.
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
