package flagenv

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/azure"
)

// Var defines a flag whose value is parsed by parse. The default is the value of target.
func Var[T any](flags *pflag.FlagSet, target *T, name string, parse func(string) (T, error), usage string) {
	VarP(flags, target, name, "", parse, usage)
}

// VarP is Var for a flag that also has a name of one letter.
func VarP[T any](flags *pflag.FlagSet, target *T, name, shorthand string, parse func(string) (T, error), usage string) {
	text := "" // --help shows no default for it
	if !reflect.ValueOf(target).Elem().IsZero() {
		text = fmt.Sprint(*target)
	}
	flags.VarP(&value[T]{target, text, parse}, name, shorthand, usage)
}

// List defines a flag for a list whose items are separated by commas. A flag that is given
// again appends to the list.
func List[T any](flags *pflag.FlagSet, target *[]T, name string, parse func(string) (T, error), usage string) {
	Var(flags, target, name, func(s string) ([]T, error) {
		items, err := ParseList(s, parse)
		return slices.Concat(*target, items), err
	}, usage)
}

// value is a [pflag.Value] of any type, parsed by a function.
type value[T any] struct {
	target *T
	text   string
	parse  func(string) (T, error)
}

// Set implements pflag.Value.
func (v *value[T]) Set(s string) error {
	parsed, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.target, v.text = parsed, s
	return nil
}

// String implements pflag.Value.
func (v *value[T]) String() string { return v.text }

// Type returns the word that --help shows for the value where the usage has no word in
// backquotes.
func (v *value[T]) Type() string { return "value" }

// ParseList parses each item of a list whose items are separated by commas. It ignores white
// space around an item. An empty text is an empty list.
func ParseList[T any](s string, parse func(string) (T, error)) ([]T, error) {
	if s == "" {
		return nil, nil
	}
	var items []T
	for text := range strings.SplitSeq(s, ",") {
		text = strings.TrimSpace(text)
		if strings.ContainsAny(text, "\r\n") {
			return nil, azure.Invalid(s, "must be one line, with commas between its items")
		}
		item, err := parse(text)
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}

// Optional returns a parser that parses an empty text as the zero value.
func Optional[T any](parse func(string) (T, error)) func(string) (T, error) {
	return func(s string) (T, error) {
		if s == "" {
			var zero T
			return zero, nil
		}
		return parse(s)
	}
}

// OneOf returns a parser that accepts only these values.
func OneOf(values ...string) func(string) (string, error) {
	reason := "must be " + alternatives(values)
	return func(s string) (string, error) {
		if !slices.Contains(values, s) {
			return "", azure.Invalid(s, reason)
		}
		return s, nil
	}
}
