package main

import (
	"errors"
	"net"
	"strconv"

	"k8s.io/apimachinery/pkg/util/validation"
)

func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		var n int
		if n, err = strconv.Atoi(port); err == nil && n >= 0 && n <= 65535 {
			return nil
		}
	}
	return errors.New("say HOST:PORT or :PORT, such as :9443")
}

func checkName(name string) error {
	if name == "" {
		return errors.New("say a name")
	}
	if wrong := validation.IsDNS1123Subdomain(name); len(wrong) > 0 {
		return errors.New("no name of a Kubernetes object: it takes lower-case letters, digits, dots and hyphens")
	}
	return nil
}
