package manifests

import (
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// scrape starts the proxy and returns its metrics, as Prometheus reads them. The proxy sends no
// requests, since it is not asked for a token and forwards nothing.
func scrape(t *testing.T) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	env := []string{
		"AZURE_TENANT_ID=11111111-2222-4333-8444-555555555555",
		"AZURE_AUTHORITY_HOST=https://entra.example.test/",
		"AZURE_FEDERATED_TOKEN_FILE=" + federatedToken(t),
		"PROXY_IMDS_PASSTHROUGH=off",
		"PROXY_PORT=" + port,
	}
	proxy := exec.Command(filepath.Join(dir, "proxy"))
	proxy.Env = env
	if err := proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = proxy.Process.Signal(syscall.SIGTERM) // it may have exited
		_ = proxy.Wait()                          // the exit code does not matter here
	})
	if out, code := program(t, "proxy", []string{"--probe", "--probe-timeout=20s"}, env); code != 0 {
		t.Fatalf("the proxy is not ready: %s", out)
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{Proxy: nil}}
	get := func(path string, header http.Header) *http.Response {
		r, err := http.NewRequest("GET", "http://127.0.0.1:"+port+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = header
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	// The series of refusals exist after the first refusal.
	get("/metadata/identity/oauth2/token", nil).Body.Close()
	get("/metadata/identity/oauth2/token?api-version=2018-02-01", http.Header{"Metadata": {"true"}}).Body.Close()
	get("/nowhere", nil).Body.Close()
	resp := get("/metrics", nil)
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s, %v: %s", resp.Status, err, page)
	}
	return string(page)
}

// freePort returns a port at which no process listens, below the default range of ports for outgoing
// connections on Linux. The function of test/kit/local is in another module.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(10_000 + rand.IntN(20_000))
		if listener, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			listener.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

// federatedToken writes a token with valid claims, for the metrics about its expiry. Its signature is
// invalid, but it is not sent to Entra.
func federatedToken(t *testing.T) string {
	t.Helper()
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	now := time.Now().Unix()
	claims := fmt.Sprintf(`{"iss":"https://issuer.example.test","sub":"system:serviceaccount:demo:app","aud":["api://AzureADTokenExchange"],"iat":%d,"nbf":%[1]d,"exp":%d}`, now, now+3600)
	file := filepath.Join(t.TempDir(), "token")
	token := encode(`{"alg":"RS256","kid":"none"}`) + "." + encode(claims) + "." + encode("signature")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
