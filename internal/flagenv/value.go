package flagenv

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/azure"
)

// Var defines a flag whose text parse reads. The default is what target holds.
func Var[T any](flags *pflag.FlagSet, target *T, name string, parse func(string) (T, error), usage string) {
	text := "" // --help shows no default then
	if !reflect.ValueOf(target).Elem().IsZero() {
		text = fmt.Sprint(*target)
	}
	flags.Var(&value[T]{target, text, parse}, name, usage)
}

// List defines a flag that takes a list, separated by commas. Given again, it adds to the
// list.
func List[T any](flags *pflag.FlagSet, target *[]T, name string, parse func(string) (T, error), usage string) {
	Var(flags, target, name, func(s string) ([]T, error) {
		items, err := ParseList(s, parse)
		return slices.Concat(*target, items), err
	}, usage)
}

// value is a [pflag.Value] of any type that a function parses.
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

// Type is what --help calls a value whose usage names none in backquotes.
func (v *value[T]) Type() string { return "value" }

// ParseList parses each item of a list that commas separate. White space around an item does
// not count. An empty text is an empty list.
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

// Optional returns a parser that takes an empty text for the zero value.
func Optional[T any](parse func(string) (T, error)) func(string) (T, error) {
	return func(s string) (T, error) {
		if s == "" {
			var zero T
			return zero, nil
		}
		return parse(s)
	}
}

// OneOf returns a parser that takes these values only.
func OneOf(values ...string) func(string) (string, error) {
	last := len(values) - 1
	reason := "must be " + strings.Join(values[:last], ", ") + " or " + values[last]
	return func(s string) (string, error) {
		if !slices.Contains(values, s) {
			return "", azure.Invalid(s, reason)
		}
		return s, nil
	}
}
