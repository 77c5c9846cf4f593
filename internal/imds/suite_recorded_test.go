package imds_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/tokens"
)

// recording has the requests of one run of a real client, and the statuses of the answers
// with which the client got a token.
type recording struct {
	Client string
	// Date is true if the client reads expires_on only as a date.
	Date     bool `json:"expires_on_date"`
	Requests []struct {
		Scheme   string
		Method   string
		Target   string
		HTTP     string
		Query    [][2]string
		Headers  [][2]string
		Body     string
		Response int `json:"response_status"`
	}
}

// TestRecorded replays the requests of real clients byte for byte over a real connection,
// and checks that each answer is the one that the client needs.
func TestRecorded(t *testing.T) {
	files, err := filepath.Glob("testdata/recorded/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	source := &tokenSource{}
	machine := newDecoy(t)
	cfg := config(source)
	cfg.Passthrough = azure.MetadataURL(machine.URL)
	cfg.AppServiceHeader = secret
	addr := serve(t, newHandler(t, cfg))
	count := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var rec recording
		if err := json.Unmarshal(text, &rec); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for i, r := range rec.Requests {
			if r.Scheme != "http" {
				continue // to Azure's management endpoint, with the token
			}
			count++
			t.Run(fmt.Sprintf("%s/%d", rec.Client, i), func(t *testing.T) {
				var request bytes.Buffer
				fmt.Fprintf(&request, "%s %s %s\r\n", r.Method, r.Target, r.HTTP)
				for _, h := range r.Headers {
					if !strings.EqualFold(h[0], "Connection") {
						fmt.Fprintf(&request, "%s: %s\r\n", h[0], h[1])
					}
				}
				// exchangeBytes reads until the server closes the connection.
				fmt.Fprintf(&request, "Connection: close\r\n\r\n%s", r.Body)
				checkReplay(t, inSeconds(t, exchangeBytes(t, addr, request.Bytes()), rec.Date), r.Response, wantFor(r.Query), source)
			})
		}
	}
	if got := machine.seen(); len(got) != 0 {
		t.Errorf("IMDS saw %q", got)
	}
	t.Logf("%d requests of %d runs", count, len(files))
}

// inSeconds returns an answer with expires_on in seconds, in which all parsers can read it. It fails
// the test if the answer does not have the form that the client reads.
func inSeconds(t *testing.T, answer []byte, date bool) []byte {
	t.Helper()
	const expiryDate, seconds = `"expires_on":"11/12/2020 04:33:44 +00:00"`, `"expires_on":"1605155624"`
	if !bytes.Contains(answer, []byte(`"access_token"`)) {
		return answer
	}
	if bytes.Contains(answer, []byte(expiryDate)) != date {
		t.Errorf("got %s, want a date in expires_on: %t", answer, date)
	}
	return bytes.Replace(answer, []byte(expiryDate), []byte(seconds), 1)
}

func wantFor(query [][2]string) tokens.Request {
	want := tokens.Request{ClientID: defaultID}
	for _, q := range query {
		switch q[0] {
		case "resource":
			want.Resource = azure.Resource(q[1])
		case "client_id", "clientid":
			want.ClientID = azure.ClientID(q[1])
		case "object_id", "msi_res_id", "mi_res_id", "resource_id":
			want.ClientID = mappedID
		}
	}
	return want
}

func checkReplay(t *testing.T, answer []byte, status int, want tokens.Request, source *tokenSource) {
	t.Helper()
	head, body, _ := bytes.Cut(answer, []byte("\r\n\r\n"))
	// msrestazure requires the reason phrase.
	if line := fmt.Sprintf("HTTP/1.1 %d %s\r\n", status, http.StatusText(status)); !bytes.HasPrefix(head, []byte(line)) {
		t.Fatalf("got %q, want %q", answer, line)
	}
	asked := source.seen()
	if status != http.StatusOK {
		if len(asked) != 0 {
			t.Errorf("asked for %+v", asked)
		}
		if bytes.Contains(body, []byte("Identity not found")) {
			t.Errorf("got %s for a probe", body)
		}
		return
	}
	if len(asked) != 1 || asked[0] != want {
		t.Errorf("asked for %+v, want %+v", asked, want)
	}
	for _, p := range clientParsers {
		if token, _, err := p.parse(bytes.Clone(body)); err != nil || token != "token-of-"+string(want.ClientID) {
			t.Errorf("%s: got %q, %v", p.client, token, err)
		}
	}
	var m map[string]string
	if err := json.Unmarshal(body, &m); err != nil || m["resource"] != string(want.Resource) || m["client_id"] != string(want.ClientID) {
		t.Errorf("got %s (%v), want resource %q", body, err, want.Resource)
	}
}
