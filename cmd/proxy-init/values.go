package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/netrules"
)

// flagValue is a pflag.Value of any type that a function can parse.
type flagValue[T any] struct {
	target *T
	text   string
	parse  func(string) (T, error)
}

func define[T any](fs *pflag.FlagSet, target *T, name string, value T, parse func(string) (T, error), help string) *pflag.Flag {
	*target = value
	return fs.VarPF(&flagValue[T]{target, strings.Trim(fmt.Sprint(value), "[]"), parse}, name, "", help)
}

// defineBool makes a flag that needs no value.
func defineBool(fs *pflag.FlagSet, target *bool, name string, value bool, help string) {
	define(fs, target, name, value, parseBool, help).NoOptDefVal = "true"
}

func (v *flagValue[T]) String() string { return v.text }

func (v *flagValue[T]) Type() string {
	if _, isBool := any(*v.target).(bool); isBool {
		return "bool"
	}
	return "value"
}

func (v *flagValue[T]) Set(s string) error {
	parsed, err := v.parse(s)
	if err != nil {
		return err
	}
	*v.target, v.text = parsed, s
	return nil
}

func parsePort(s string) (uint16, error) {
	p, err := strconv.ParseUint(s, 10, 16)
	if err != nil || p == 0 {
		return 0, errors.New("need a port between 1 and 65535")
	}
	return uint16(p), nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, errors.New("need an IPv4 address")
	}
	return a, nil
}

func parseID(s string) (uint32, error) {
	id, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, errors.New("need a numeric ID")
	}
	return uint32(id), nil
}

func parseTargets(s string) ([]netrules.Target, error) {
	var targets []netrules.Target
	for item := range strings.SplitSeq(s, ",") {
		t, err := netrules.ParseTarget(strings.TrimSpace(item))
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	return targets, nil
}

func parseBool(s string) (bool, error) {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, errors.New("need true or false")
	}
	return b, nil
}
