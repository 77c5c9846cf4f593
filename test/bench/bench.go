package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/local"
)

const (
	subject = "system:serviceaccount:bench:app"

	// identities is how many client IDs share the resources, so that no first exchange is
	// over the budget of its client ID.
	identities = 30

	// connections is more than the number of cores, and few enough not to measure the
	// kernel's queues.
	connections = 16

	// startTimeout bounds the wait until a server is ready.
	startTimeout = 10 * time.Second
)

// bench holds the fake Entra, the federated token and the binary to measure.
type bench struct {
	binary                 string
	rounds, requests, soak int

	dir   string
	idp   *entra.Server
	token *entra.ProjectedToken
}

func newBench(binary string) (_ *bench, err error) {
	b := &bench{}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.binary, err = filepath.Abs(binary); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return nil, err
	}
	if b.idp, err = entra.Start(entra.Config{}); err != nil {
		return nil, err
	}
	for n := range identities {
		b.idp.AddApplication(entra.Application{ClientID: clientID(n), Credentials: []entra.FederatedCredential{{Subject: subject}}})
	}
	b.idp.AddResource("https://*.bench.example.test")
	if err = b.idp.WriteCA(filepath.Join(b.dir, "ca.pem")); err != nil {
		return nil, err
	}
	b.token, err = b.idp.ProjectToken(entra.ProjectedTokenConfig{Dir: b.dir, Subject: subject})
	return b, err
}

func (b *bench) close() {
	if b.idp != nil {
		b.idp.Close()
	}
	os.RemoveAll(b.dir)
}

// server is a process under load.
type server struct {
	cmd     *exec.Cmd
	address string
	ready   time.Duration // from its start to its first answer to /readyz
}

// startProxy starts the proxy. Its log is a file, as in a container.
func (b *bench) startProxy(args ...string) (*server, error) {
	port, err := local.FreePort()
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(b.dir, "proxy.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Forwarding is off, because this machine may have a real metadata service.
	args = append([]string{"--imds-passthrough=off", "--proxy-port=" + strconv.Itoa(port), "--allowed-client-ids=" + clientIDs()}, args...)
	s := &server{cmd: exec.Command(b.binary, args...), address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
	s.cmd.Env = []string{
		"AZURE_CLIENT_ID=" + clientID(0),
		"AZURE_TENANT_ID=" + b.idp.TenantID(),
		"AZURE_FEDERATED_TOKEN_FILE=" + b.token.Path(),
		"AZURE_AUTHORITY_HOST=" + b.idp.AuthorityHost(),
		"PROXY_CA_FILE=" + filepath.Join(b.dir, "ca.pem"),
	}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if err := s.waitReady(began); err != nil {
		s.stop()
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%w:\n%s", err, text)
	}
	return s, nil
}

// waitReady polls /readyz until the server is ready. It polls each millisecond, since it measures
// milliseconds.
func (s *server) waitReady(began time.Time) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for time.Since(began) < startTimeout {
		resp, err := client.Get("http://" + s.address + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				s.ready = time.Since(began)
				return nil
			}
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("%s was not ready within %s", s.cmd.Path, startTimeout)
}

func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait() // the error says that a signal ended the process, as intended
}

// resident returns the resident memory of the process, in bytes.
func (s *server) resident() (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kibibytes, err := strconv.Atoi(fields[1])
			return kibibytes << 10, err
		}
	}
	return 0, fmt.Errorf("no VmRSS in the status of process %d", s.cmd.Process.Pid)
}

// tick is the unit of CPU time in /proc.
const tick = time.Second / 100

// cpuTime returns the user and system CPU time of the process.
func (s *server) cpuTime() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// User and system time are the 12th and 13th field after the name of the program, which
	// may contain spaces.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(fields[12])
	return time.Duration(user+system) * tick, err
}

// startBare starts a net/http server that always sends the same answer.
func startBare(answer bareAnswer) (*server, error) {
	input, err := json.Marshal(answer)
	if err != nil {
		return nil, err
	}
	s := &server{cmd: exec.Command("/proc/self/exe", "bare")}
	s.cmd.Stdin, s.cmd.Stderr = bytes.NewReader(input), os.Stderr
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := fmt.Fscanln(stdout, &s.address); err != nil {
		s.stop()
		return nil, err
	}
	return s, s.waitReady(began)
}

// bareMain is the main function of the process that startBare starts. It serves until the process
// is ended.
func bareMain(stdin io.Reader, stdout io.Writer) error {
	var answer bareAnswer
	if err := json.NewDecoder(stdin).Decode(&answer); err != nil {
		return err
	}
	body := []byte(answer.Body)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, listener.Addr())
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, values := range answer.Header {
			w.Header()[name] = values
		}
		w.Write(body)
	}))
}

// fetch requests target and returns the answer.
func (s *server) fetch(target string) (bareAnswer, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+s.address+target, nil)
	if err != nil {
		return bareAnswer{}, err
	}
	req.Header.Set("Metadata", "true")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return bareAnswer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return bareAnswer{}, err
	}
	if resp.StatusCode != http.StatusOK {
		return bareAnswer{}, fmt.Errorf("%s: %s", resp.Status, body)
	}
	header := resp.Header.Clone()
	header.Del("Date") // net/http writes its own
	return bareAnswer{Header: header, Body: string(body)}, nil
}

// clientID returns the client ID of the n-th identity.
func clientID(n int) string { return fmt.Sprintf("0d5ac2f1-7a5d-4a41-9f0e-2f3b1f6a%04d", n) }

func clientIDs() string {
	all := make([]string, identities)
	for n := range all {
		all[n] = clientID(n)
	}
	return strings.Join(all, ",")
}

// target returns the request target for the n-th resource.
func target(n int) string {
	return fmt.Sprintf("/metadata/identity/oauth2/token?api-version=2018-02-01&client_id=%s&resource=https://key-%d.bench.example.test",
		clientID(n%identities), n)
}

func targets(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = target(i)
	}
	return all
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}
