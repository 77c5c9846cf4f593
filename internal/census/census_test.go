package census_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/internal/census"
)

// identify returns the caller that a census counts for a header.
func identify(header http.Header) census.Caller {
	c := census.New(census.Config{})
	c.Count(header)
	return c.Entries()[0].Caller
}

func agent(userAgent string) http.Header { return http.Header{"User-Agent": {userAgent}} }

func withSKU(userAgent, sku, version string) http.Header {
	return http.Header{"User-Agent": {userAgent}, "X-Client-Sku": {sku}, "X-Client-Ver": {version}}
}

func TestIdentify(t *testing.T) {
	for _, test := range []struct {
		header  http.Header
		sdk     string
		version string
		wi      census.WorkloadIdentity
	}{
		// On either side of the first version that supports workload identity.
		{agent("azsdk-go-azidentity/v1.2.2 (go1.20; linux)"), "go-azidentity", "1.2.2", census.No},
		{agent("azsdk-go-azidentity/v1.3.0 (go1.20; linux)"), "go-azidentity", "1.3.0", census.Yes},
		{agent("azsdk-go-azidentity/v1.3.0-beta.4 (go1.20; linux)"), "go-azidentity", "1.3.0-beta.4", census.No},
		{agent("azsdk-python-identity/1.12.0 Python/3.11.2 (Linux)"), "python-azure-identity", "1.12.0", census.No},
		{agent("azsdk-python-identity/1.13.0b2 Python/3.11.2 (Linux)"), "python-azure-identity", "1.13.0b2", census.No},
		{agent("azsdk-python-identity/1.13.0 Python/3.11.2 (Linux)"), "python-azure-identity", "1.13.0", census.Yes},
		{agent("azsdk-js-identity/3.1.4 core-rest-pipeline/1.10.3 Node/v18.16.0 OS/(x64-Linux-5.15)"), "js-azure-identity", "3.1.4", census.No},
		{agent("azsdk-js-identity/3.2.0 core-rest-pipeline/1.10.3 Node/v18.16.0 OS/(x64-Linux-5.15)"), "js-azure-identity", "3.2.0", census.Yes},
		{agent("azsdk-net-Identity/1.8.2 (.NET 6.0.16; Ubuntu 22.04)"), "net-azure-identity", "1.8.2", census.No},
		{agent("azsdk-net-Identity/1.11.0-alpha.20240307.1 (.NET Framework 4.8)"), "net-azure-identity", "1.11.0-alpha.20240307.1", census.Yes},
		{agent("azsdk-net-Identity/1.9.0 (.NET 6.0.16; Ubuntu 22.04)"), "net-azure-identity", "1.9.0", census.Yes},
		{agent("azsdk-java-azure-identity/1.8.3 (17.0.7; Linux; 5.15)"), "java-azure-identity", "1.8.3", census.No},
		{agent("azsdk-java-azure-identity/1.9.0 (17.0.7; Linux; 5.15)"), "java-azure-identity", "1.9.0", census.Yes},
		{agent("azsdk-cpp-identity/1.5.1 (Linux 5.15)"), "cpp-azure-identity", "1.5.1", census.No},
		{agent("azsdk-cpp-identity/1.6.0 (Linux 5.15)"), "cpp-azure-identity", "1.6.0", census.Yes},
		{agent("azsdk-rust-identity/1.0.0 (1.95.0; linux; x86_64)"), "rust-azure-identity", "1.0.0", census.Yes},
		{agent("shop-cart azsdk-rust-identity/0.24.0 (1.80.0; linux; x86_64)"), "rust-azure-identity", "0.24.0", census.Yes},
		{agent("azsdk-rust-identity/0.23.0 (1.75.0; linux; x86_64)"), "rust-azure-identity", "0.23.0", census.No},
		{agent("azsdk-rust-storage_blob/0.5.0 (1.90.0; linux; x86_64)"), "unknown", "", census.Unknown}, // does not ask for tokens itself
		// Versions are compared as numbers, not as text.
		{agent("azsdk-go-azidentity/v1.10.0"), "go-azidentity", "1.10.0", census.Yes},
		{agent("azsdk-go-azidentity/v1"), "go-azidentity", "1", census.No},
		{agent("azsdk-go-azidentity/v2"), "go-azidentity", "2", census.Yes},
		// The application may put its own name first.
		{agent("shop-cart azsdk-go-azidentity/v1.0.0 (go1.20; linux)"), "go-azidentity", "1.0.0", census.No},
		{agent("(a comment azsdk-go-azidentity/v9) curl/8.0.1"), "curl", "8.0.1", census.Unknown},
		// MSAL's headers count if no Azure Identity library sends its name.
		{withSKU("Go-http-client/1.1", "MSAL.Go", "1.4.2"), "msal-go", "1.4.2", census.No},
		{withSKU("", "MSAL.NetCore", "4.61.3.0"), "msal-net", "4.61.3.0", census.No},
		{withSKU("azsdk-go-azidentity/v1.15.0 (go1.26; linux)", "MSAL.Go", "1.10.1"), "go-azidentity", "1.15.0", census.Yes},
		{agent("Java/1.8.0_292"), "java", "1.8.0", census.Unknown},
		{agent("rclone/v1.62.2"), "rclone", "1.62.2", census.No},
		{agent("rclone/v1.63.0"), "rclone", "1.63.0", census.Yes},
		{agent("rclone"), "rclone", "", census.Unknown},
		{agent("object_store/0.5.3"), "rust-object-store", "0.5.3", census.No},
		{agent("object_store/0.5.4"), "rust-object-store", "0.5.4", census.Yes},
		{agent("Faraday v1.10.3"), "ruby-faraday", "", census.Unknown},
		{agent("curl/7.88.1 curl/8.0.1"), "curl", "8.0.1", census.Unknown},                              // the last one counts
		{agent("Go-http-client without accept-encoding/1.1"), "azcopy-or-blobfuse", "", census.Unknown}, // a product has no space
		{agent("Fluent-Bit"), "fluent-bit", "", census.Unknown},
		{agent("azsdk-go-azidentity"), "go-azidentity", "", census.Unknown},
		// Text that is not recognized is not kept.
		{agent(""), "unknown", "", census.Unknown},
		{http.Header{}, "unknown", "", census.Unknown},
		{agent("password=hunter2/1.0"), "unknown", "", census.Unknown},
		{withSKU("x", "secret", "1.0"), "unknown", "", census.Unknown},
		{agent("curl/hunter2"), "curl", "", census.Unknown},
		{agent("curl/7.88hunter2"), "curl", "", census.Unknown},
		{agent("curl/7.88.1-hunter2"), "curl", "7.88.1", census.Unknown},
		{agent("azsdk-go-azidentity/v1.0.0\n\"}injected 1"), "go-azidentity", "1.0.0", census.No},
		{agent("azsdk-go-azidentity/v999999999999999999999.0.0"), "go-azidentity", "", census.Unknown},
	} {
		got := identify(test.header)
		if got.SDK != test.sdk || got.Version != test.version || got.WorkloadIdentity != test.wi {
			t.Errorf("%q: got %+v, want %s %q %s", test.header, got, test.sdk, test.version, test.wi)
		}
		if (got.WorkloadIdentity == census.No) && got.Upgrade == "" {
			t.Errorf("%q: Upgrade is empty", test.header)
		}
	}
}

// TestProgramsOfTheirOwn: programs that ask IMDS with code of their own, by the lines that they
// send, in their order. The source of the lines is above each of them.
func TestProgramsOfTheirOwn(t *testing.T) {
	for _, test := range []struct {
		lines   string
		sdk     string
		version string
		wi      census.WorkloadIdentity
		upgrade string // part of it
	}{
		// rclone, backend/azureblob/imds.go and fs/fshttp/http.go, up to 1.60.
		{"Host: 169.254.169.254|User-Agent: rclone/v1.60.1|Metadata: true|Accept-Encoding: gzip", "rclone", "1.60.1", census.No, "rclone 1.63.0 or later, with env_auth = true"},
		// The same for Debian's build.
		{"Host: 169.254.169.254|User-Agent: rclone/v1.60.1-DEV|Metadata: true|Accept-Encoding: gzip", "rclone", "1.60.1", census.No, "1.63.0 or later"},
		// rclone, backend/azureblob/auth/auth.go, newTransporter: azidentity with use_msi.
		{"Host: 169.254.169.254|User-Agent: APN/1.0 rclone/1.0 rclone/1.68.2|Metadata: true|X-Client-Sku: MSAL.Go|X-Client-Ver: 1.2.2|Accept-Encoding: gzip", "rclone", "1.68.2", census.Yes, "no upgrade needed: use env_auth = true"},
		// object_store, src/client/mod.rs (DEFAULT_USER_AGENT) and src/azure/credential.rs.
		{"metadata: true|accept: */*|user-agent: object_store/0.13.2|host: 169.254.169.254", "rust-object-store", "0.13.2", census.Yes, "AZURE_FEDERATED_TOKEN_FILE"},
		// databricks-sdk-go, config/auth_azure_msi.go, httpclient/api_client.go, useragent.
		{"Host: 169.254.169.254|User-Agent: unknown/0.0.0 databricks-sdk-go/0.26.0 go/1.21.5 os/linux|Accept: application/json|Metadata: true|Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01|Accept-Encoding: gzip", "databricks-sdk-go", "0.26.0", census.No, "file-oidc"},
		// The same in the Databricks CLI.
		{"Host: 169.254.169.254|User-Agent: cli/0.210.0 databricks-sdk-go/0.26.0 go/1.21.5 os/linux cmd/clusters_list auth/azure-msi|Metadata: true|Accept-Encoding: gzip", "databricks-sdk-go", "0.26.0", census.No, "file-oidc"},
		// azcopy up to 10.20, common/oauthTokenManager.go: DisableCompression.
		{"Host: 169.254.169.254|User-Agent: Go-http-client/1.1|Metadata: true", "azcopy-or-blobfuse", "1.1", census.Unknown, "azcopy 10.25.0 or later with AZCOPY_AUTO_LOGIN_TYPE=WORKLOAD"},
		// hamilton, auth/msi.go, azureMetadata.
		{"Host: 169.254.169.254|User-Agent: Go-http-client/1.1|Metadata: true|Accept-Encoding: gzip", "go-http-client", "1.1", census.Unknown, "hamilton: go-azure-sdk"},
		// Terraform azurerm: go-azure-sdk, sdk/auth/managed_identity_authorizer.go, client.go.
		{"Host: 169.254.169.254|User-Agent: Go-http-client/1.1|Metadata: true|Accept-Encoding: gzip", "go-http-client", "1.1", census.Unknown, "azurerm: 3.85.0 or later with use_aks_workload_identity"},
		// msodbcsql 18.5, as recorded.
		{"Host: 169.254.169.254|User-Agent: AzureADAuthProvider|Pragma: no-cache|Metadata: true|Accept: */*", "msodbcsql", "", census.No, "SQL_COPT_SS_ACCESS_TOKEN"},
		// mssql-jdbc 8.3 to 11.2, SQLServerSecurityUtility.java: java.net.HttpURLConnection.
		{"Metadata: true|User-Agent: Java/11.0.22|Host: 169.254.169.254|Accept: text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2|Connection: keep-alive", "java", "11.0.22", census.Unknown, "mssql-jdbc: 12.4 or later with authentication=ActiveDirectoryDefault"},
		// azure-security-keyvault-jca, AccessTokenUtil.java and HttpUtil.java (Apache HttpClient).
		{"User-Agent: az-se-kv-jca/2.10.1|Metadata: true|Accept-Encoding: gzip, x-gzip, deflate|Host: 169.254.169.254|Connection: keep-alive", "java-keyvault-jca", "2.10.1", census.No, "azure-security-keyvault-certificates"},
		// The same in a jar without a manifest, and in the Spring starter.
		{"User-Agent: az-sp-kv-jca/unknown|Metadata: true|Accept-Encoding: gzip, x-gzip, deflate|Host: 169.254.169.254|Connection: keep-alive", "java-keyvault-jca", "", census.No, "azure-security-keyvault-certificates"},
		// MSAL4J 1.26, IMDSManagedIdentitySource.java.
		{"Metadata: true|x-client-SKU: MSAL.Java|x-client-VER: 1.26.1|x-ms-client-request-id: 69a0b5a4-e62b-11f1-9f02-465e9a5fe042|User-Agent: Java/17.0.15|Host: 169.254.169.254|Accept: */*|Connection: keep-alive", "msal-java", "1.26.1", census.No, "azure-identity (Java) 1.9.0 or later"},
		// MSAL4J 1.19, which does not send its name.
		{"Metadata: true|User-Agent: Java/17.0.15|Host: 169.254.169.254|Accept: */*|Connection: keep-alive", "java", "17.0.15", census.Unknown, "azure-identity (Java) 1.9.0 or later"},
	} {
		text := "GET / HTTP/1.1\r\n" + strings.ReplaceAll(test.lines, "|", "\r\n") + "\r\n\r\n"
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		if err != nil {
			t.Fatalf("%s: %v", test.lines, err)
		}
		got := identify(r.Header)
		if got.SDK != test.sdk || got.Version != test.version || got.WorkloadIdentity != test.wi || !strings.Contains(got.Upgrade, test.upgrade) {
			t.Errorf("%s: got %+v, want %s %q %s with %q", test.lines, got, test.sdk, test.version, test.wi, test.upgrade)
		}
	}
}

// TestRecorded: the census recognizes every recorded client.
func TestRecorded(t *testing.T) {
	files, err := filepath.Glob("../imds/testdata/recorded/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	// The name of a recording begins with the client's name, after appservice- if the client was
	// asked to use App Service's variables.
	sdks := []struct{ recording, sdk string }{
		{"azcli-2.45.0-login", "azure-cli"},
		{"azcli-2.45.0-get", "python-msrestazure"}, // for this request the CLI uses the library
		{"curl-", "curl"},
		{"go-adal-", "go-autorest"},
		{"go-azidentity-v1.0.0", "go-azidentity 1.0.0 no"},
		{"go-azidentity-v1.3.0", "go-azidentity 1.3.0 yes"},
		{"go-azidentity-v1.15.0", "go-azidentity 1.15.0 yes"},
		{"java-keyvault-jca", "java-keyvault-jca 2.10.1 no"},
		{"java-mssql-jdbc", "java"},
		{"js-identity-1.0.0", "unknown"},
		{"js-identity-1.5.2", "js-azure-identity 1.5.2 no"},
		{"js-identity-2.1.0", "js-azure-identity 2.1.0 no"},
		{"js-identity-4.7.0", "js-azure-identity 4.7.0 yes"},
		{"js-identity-v1.5.2", "js-azure-identity 1.5.2 no"},
		{"js-identity-v2.1.0", "js-azure-identity 2.1.0 no"},
		{"js-identity-v3.4.2", "js-azure-identity 3.4.2 yes"},
		{"js-identity-v4.13.1", "js-azure-identity 4.13.1 yes"},
		{"js-ms-rest-nodeauth", "node-fetch"},
		{"msodbcsql-", "msodbcsql"},
		{"py-azure-identity", "python-azure-identity 1.13.0b2 no"},
		{"py-azure-identity-1.12.0", "python-azure-identity 1.12.0 no"},
		{"py-azure-identity-1.27.0", "python-azure-identity 1.27.0 yes"},
		{"py-azure-identity-1.5.0", "python-azure-identity 1.5.0 no"},
		{"py-azure-identity-1.8.0", "python-azure-identity 1.8.0 no"},
		{"py-msrestazure", "python-msrestazure 0.6.4 no"},
	}
	for _, file := range files {
		want := ""
		for _, s := range sdks {
			if strings.HasPrefix(strings.TrimPrefix(filepath.Base(file), "appservice-"), s.recording) {
				want = s.sdk
			}
		}
		if want == "" {
			t.Errorf("%s: add the client of this recording to the table", file)
			continue
		}
		for _, header := range recordedHeaders(t, file) {
			caller := identify(header)
			got := fmt.Sprint(caller.SDK, " ", caller.Version, " ", caller.WorkloadIdentity)
			if !strings.HasPrefix(got+" ", want+" ") && !(strings.HasPrefix(filepath.Base(file), "azcli") && caller.SDK == "python-msrestazure") {
				t.Errorf("%s: got %s, want %s", file, got, want)
			}
		}
	}
}

func recordedHeaders(t *testing.T, file string) []http.Header {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var recording struct {
		Requests []struct {
			Scheme  string
			Headers [][2]string
		}
	}
	if err := json.Unmarshal(text, &recording); err != nil {
		t.Fatal(err)
	}
	var headers []http.Header
	for _, r := range recording.Requests {
		if r.Scheme != "http" {
			continue // this request did not go to IMDS
		}
		header := make(http.Header)
		for _, h := range r.Headers {
			header.Add(h[0], h[1])
		}
		headers = append(headers, header)
	}
	if len(headers) == 0 {
		t.Errorf("%s: no requests to IMDS", file)
	}
	return headers
}

func TestNewIsCalledOnceForEachCaller(t *testing.T) {
	var called []string
	now := time.Unix(1605152024, 0)
	c := census.New(census.Config{
		New: func(caller census.Caller) { called = append(called, caller.SDK+" "+caller.Version) },
		Now: func() time.Time { now = now.Add(time.Second); return now },
	})
	for range 3 {
		c.Count(agent("curl/7.88.1"))
		c.Count(agent("azsdk-go-azidentity/v1.0.0 (go1.20; linux)"))
		c.Count(agent("azsdk-go-azidentity/v1.0.0 (go1.26; linux)")) // the same caller
	}
	if got, want := strings.Join(called, ", "), "curl 7.88.1, go-azidentity 1.0.0"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	entries := c.Entries()
	if len(entries) != 2 || entries[0].SDK != "go-azidentity" || entries[0].Requests != 6 || entries[1].Requests != 3 {
		t.Errorf("got %+v", entries)
	}
	if got := entries[0].LastSeen.Sub(entries[0].FirstSeen); got != 7*time.Second {
		t.Errorf("got %v between the first and the last", got)
	}
}

// TestBounded: a program that makes up clients fills a bounded table, and callers from
// before are still counted separately.
func TestBounded(t *testing.T) {
	calls := 0
	c := census.New(census.Config{New: func(census.Caller) { calls++ }})
	c.Count(agent("azsdk-go-azidentity/v1.0.0"))
	for i := range 10_000 {
		c.Count(agent(fmt.Sprintf("curl/%d.%d", i/100, i%100)))
	}
	c.Count(agent("azsdk-go-azidentity/v1.0.0"))
	entries := c.Entries()
	if len(entries) != 33 || calls != 32 {
		t.Errorf("got %d callers and %d calls of New, want 33, one of them for all others, and 32", len(entries), calls)
	}
	total := uint64(0)
	for _, e := range entries {
		total += e.Requests
		if e.SDK == "go-azidentity" && e.Requests != 2 {
			t.Errorf("got %+v, want 2 requests", e)
		}
	}
	if total != 10_002 {
		t.Errorf("got %d requests in all, want 10002", total)
	}
}

func TestHandler(t *testing.T) {
	c := census.New(census.Config{Now: func() time.Time { return time.Unix(1605152024, 0) }})
	c.Count(agent("azsdk-go-azidentity/v1.0.0 (go1.20; linux)"))
	w := httptest.NewRecorder()
	c.ServeHTTP(w, httptest.NewRequest("GET", "/debug/clients", nil))
	want := `{
  "clients": [
    {
      "sdk": "go-azidentity",
      "version": "1.0.0",
      "workload_identity": "no",
      "upgrade": "azidentity (Go) 1.3.0 or later",
      "requests": 1,
      "first_seen": "2020-11-12T03:33:44Z",
      "last_seen": "2020-11-12T03:33:44Z"
    }
  ]
}
`
	if got := w.Body.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	w = httptest.NewRecorder()
	census.New(census.Config{}).ServeHTTP(w, httptest.NewRequest("GET", "/debug/clients", nil))
	if got := w.Body.String(); !strings.Contains(got, `"clients": []`) {
		t.Errorf("no callers: got %s, want an empty list", got)
	}
}

func TestCountDoesNotAllocate(t *testing.T) {
	c := census.New(census.Config{})
	header := withSKU("azsdk-go-azidentity/v1.15.0 (go1.26; linux)", "MSAL.Go", "1.10.1")
	if got := testing.AllocsPerRun(100, func() { c.Count(header) }); got != 0 {
		t.Errorf("got %v allocations for a known caller, want none", got)
	}
}

// FuzzCount: whatever headers a client sends, the census keeps only a name from its
// table and a version.
func FuzzCount(f *testing.F) {
	f.Add("azsdk-python-identity/1.13.0b2 Python/3.11.2 (Linux-6.1)", "MSAL.Python", "1.2.3")
	f.Add("((((", "msal.js.node", "v1.0.0-beta.1")
	f.Add("curl/\xff\x00", "", "\"")
	version := regexp.MustCompile(`^([0-9]+(\.[0-9]+)*((a|b|rc|-alpha|-beta|-preview|-rc)[0-9.]*)?)?$`)
	name := regexp.MustCompile(`^[a-z][a-z-]+$`)
	f.Fuzz(func(t *testing.T, userAgent, sku, skuVersion string) {
		got := identify(withSKU(userAgent, sku, skuVersion))
		if !version.MatchString(got.Version) || len(got.Version) > 40 || !name.MatchString(got.SDK) {
			t.Errorf("got %+v", got)
		}
	})
}

// TestSeenAtOnce: a scrape during a caller's first request shows the current time as
// LastSeen, not 1970.
func TestSeenAtOnce(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var c *census.Census
	var entries []census.Entry
	c = census.New(census.Config{
		New: func(census.Caller) { entries = c.Entries() },
		Now: func() time.Time { return now },
	})
	c.Count(agent("curl/8.0.1"))
	if len(entries) != 1 || !entries[0].LastSeen.Equal(now) || !entries[0].FirstSeen.Equal(now) {
		t.Errorf("got %+v, want one caller, seen at %s", entries, now)
	}
}
