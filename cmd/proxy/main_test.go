package main

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"imds-oidc-proxy/test/entra"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"proxy": main})
}

// TestScripts runs the real program against the transcripts in testdata.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: setup})
}

// setup gives each script a pod's environment, whose Entra is a closed port of this
// machine, and free ports for the proxy.
func setup(env *testscript.Env) error {
	idp, err := entra.New(entra.Config{})
	if err != nil {
		return err
	}
	token := filepath.Join(env.WorkDir, "federated-token")
	if err := os.WriteFile(token, []byte(idp.SignFederatedToken(entra.Claims{Subject: "system:serviceaccount:shop:cart"})), 0o600); err != nil {
		return err
	}
	for _, name := range []string{"PORT", "OTHER_PORT", "ADMIN_PORT"} {
		port, err := freePort()
		if err != nil {
			return err
		}
		env.Setenv(name, port)
	}
	env.Setenv("AZURE_TENANT_ID", idp.TenantID())
	env.Setenv("AZURE_CLIENT_ID", "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10")
	env.Setenv("AZURE_FEDERATED_TOKEN_FILE", token)
	env.Setenv("AZURE_AUTHORITY_HOST", "https://127.0.0.1:1/")
	// The metadata address of this machine may be a real one.
	env.Setenv("PROXY_IMDS_PASSTHROUGH", "off")
	return nil
}

func freePort() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return strconv.Itoa(listener.Addr().(*net.TCPAddr).Port), nil
}
