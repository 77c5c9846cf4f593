package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"imds-oidc-proxy/internal/netrules"
)

// config is the configuration of proxy-init without flags.
var config = netrules.Config{Metadata: netip.MustParseAddrPort("169.254.169.254:80"), ProxyPort: 8000, UID: 1501, GID: 1501}

func install(path string) error {
	namespace, err := os.Open(path)
	if err != nil {
		return err
	}
	defer namespace.Close()
	if err := netrules.InstallIn(namespace, config); err != nil {
		return err
	}
	return netrules.CheckIn(namespace, config)
}

func validate() error {
	proof, err := netrules.Validate(context.Background(), config)
	failure, ok := errors.AsType[*netrules.Error](err)
	switch {
	case ok:
		fmt.Println(kinds[failure.Kind])
		return nil
	case err != nil:
		return err
	}
	fmt.Println(proof)
	return nil
}

// kinds names the kinds of errors of netrules.Validate.
var kinds = map[netrules.Kind]string{0: "other", netrules.NoRedirect: "no redirect", netrules.NoGuard: "no guard", netrules.PortTaken: "port taken"}
