package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/survey"
	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/memory"
)

const (
	// maxOwn is how much longer than the lists the plan's own work may take.
	maxOwn = 2.0
	// maxMemory is the largest resident set of imds-migrate.
	maxMemory = 200 << 20
	// pageSize is that of a plan and of kubectl.
	pageSize = 500
	// runTimeout bounds one run.
	runTimeout = 5 * time.Minute
)

type bench struct {
	cluster    *cluster.Cluster
	http       *http.Client
	kubeconfig string
	namespaces int
}

func newBench(c *cluster.Cluster, namespaces int) (*bench, error) {
	client, err := rest.HTTPClientFor(c.REST)
	if err != nil {
		return nil, err
	}
	b := &bench{cluster: c, http: client, kubeconfig: filepath.Join(filepath.Dir(os.Getenv(programVar)), "planscale.kubeconfig"), namespaces: namespaces}
	config := clientcmdapi.NewConfig()
	config.Clusters["large"] = &clientcmdapi.Cluster{Server: c.REST.Host, CertificateAuthority: c.REST.CAFile, CertificateAuthorityData: c.REST.CAData}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{ClientCertificate: c.REST.CertFile, ClientCertificateData: c.REST.CertData, ClientKey: c.REST.KeyFile, ClientKeyData: c.REST.KeyData}
	config.Contexts["large"] = &clientcmdapi.Context{Cluster: "large", AuthInfo: "admin"}
	config.CurrentContext = "large"
	if err := clientcmd.WriteToFile(*config, b.kubeconfig); err != nil {
		return nil, err
	}
	began := time.Now()
	if err := b.fill(namespaces); err != nil {
		return nil, err
	}
	fmt.Printf("planscale: created %d workloads in %d namespaces in %v\n", namespaces*workloads, namespaces, time.Since(began).Round(time.Second))
	return b, nil
}

func kindOf(group, kind string) (survey.Kind, bool) {
	i := slices.IndexFunc(survey.Kinds, func(k survey.Kind) bool { return k.Group == group && k.Kind == kind })
	if i < 0 {
		return survey.Kind{}, false
	}
	return survey.Kinds[i], true
}

func resourceOf(k survey.Kind) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.Group, Version: k.Versions[0], Resource: k.Resource}
}

// sample is one run of the lists and of the plan.
type sample struct {
	lists, plan time.Duration
	memory      int64 // bytes
}

// run lists and plans n times by turns, prints the results and checks them.
func (b *bench) run(n int) error {
	var samples []sample
	for i := range n + 1 {
		s, err := b.sample()
		if err != nil {
			return err
		}
		if i > 0 { // the first run fills caches
			samples = append(samples, s)
			fmt.Printf("run %d: lists %v, plan %v, %d MiB\n", i, s.lists.Round(time.Millisecond), s.plan.Round(time.Millisecond), s.memory>>20)
		}
	}
	own, memory := medianOwn(samples), slices.MaxFunc(samples, func(a, b sample) int { return int(a.memory - b.memory) }).memory
	fmt.Printf("%d workloads in %d namespaces, n=%d, %d CPUs (%s): the plan's own time is %.2f times that of the lists (at most %.0f); its memory is %d MiB (at most %d)\n",
		b.namespaces*workloads, b.namespaces, n, runtime.NumCPU(), runtime.GOARCH, own, maxOwn, memory>>20, maxMemory>>20)
	if own > maxOwn || memory > maxMemory {
		return errors.New("over a bound")
	}
	return nil
}

// medianOwn returns the median of the plan's own time, as a multiple of that of the lists.
func medianOwn(samples []sample) float64 {
	var ratios []float64
	for _, s := range samples {
		ratios = append(ratios, float64(s.plan-s.lists)/float64(s.lists))
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

func (b *bench) sample() (s sample, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	began := time.Now()
	requests, err := b.lists(ctx)
	if err != nil {
		return s, err
	}
	s.lists = time.Since(began)
	before, err := b.listRequests(ctx)
	if err != nil {
		return s, err
	}
	if s.plan, s.memory, err = b.plan(ctx); err != nil {
		return s, err
	}
	after, err := b.listRequests(ctx)
	if err != nil {
		return s, err
	}
	for _, k := range survey.Kinds {
		if got := after[k.String()] - before[k.String()]; got != requests[k.String()] {
			return s, fmt.Errorf("the plan has sent %d lists of %s, want %d: one, in pages of %d", got, k, requests[k.String()], pageSize)
		}
	}
	return s, nil
}

// lists reads all pages of the kinds that a plan reads and the server has, and returns the number of requests
// by kind.
func (b *bench) lists(ctx context.Context) (requests map[string]int, err error) {
	requests = map[string]int{}
	for _, k := range survey.Kinds {
		if k.Kind == "Secret" {
			continue // a plan reads them only with --read-secrets
		}
		next := ""
		for {
			token, found, err := b.page(ctx, resourceOf(k), next)
			if err != nil {
				return nil, err
			}
			if !found {
				break
			}
			requests[k.String()]++
			if next = token; next == "" {
				break
			}
		}
	}
	return requests, nil
}

// continuation finds the token of the next page, in the metadata at the beginning of a list.
var continuation = regexp.MustCompile(`^\{[^{]*"metadata":\{[^}]*"continue":"([^"]+)"`)

func (b *bench) page(ctx context.Context, r schema.GroupVersionResource, next string) (token string, found bool, err error) {
	prefix := "/apis/" + r.Group
	if r.Group == "" {
		prefix = "/api"
	}
	body, status, err := b.get(ctx, fmt.Sprintf("%s/%s/%s?limit=%d&continue=%s", prefix, r.Version, r.Resource, pageSize, next))
	if err != nil || status == http.StatusNotFound {
		return "", false, err
	}
	if status != http.StatusOK {
		return "", false, fmt.Errorf("%s: status %d", r.Resource, status)
	}
	if m := continuation.FindSubmatch(body); m != nil {
		return string(m[1]), true, nil
	}
	return "", true, nil
}

func (b *bench) get(ctx context.Context, path string) (body []byte, status int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.cluster.REST.Host+path, nil)
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("Accept", "application/json")
	answer, err := b.http.Do(request)
	if err != nil {
		return nil, 0, err
	}
	defer answer.Body.Close()
	body, err = io.ReadAll(answer.Body)
	return body, answer.StatusCode, err
}

// counter is a line of the API server's metrics with the number of list requests of a kind.
var counter = regexp.MustCompile(`^apiserver_request_total\{.*group="([^"]*)".*resource="([^"]*)".*subresource="".*verb="LIST".*\} (\S+)$`)

// listRequests returns how many lists of each kind the API server has served.
func (b *bench) listRequests(ctx context.Context) (map[string]int, error) {
	body, status, err := b.get(ctx, "/metrics")
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("metrics: status %d, %w", status, err)
	}
	counts := map[string]int{}
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		m := counter.FindStringSubmatch(lines.Text())
		if m == nil || !strings.Contains(lines.Text(), `code="200"`) {
			continue
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			return nil, err
		}
		counts[strings.TrimSuffix(m[2]+"."+m[1], ".")] += int(value)
	}
	return counts, lines.Err()
}

// plan runs imds-migrate, and returns its time and the size of its largest resident set. The kernel counts
// this process too until the program has started, so that the size is never too small.
func (b *bench) plan(ctx context.Context) (took time.Duration, peak int64, err error) {
	cmd := exec.CommandContext(ctx, os.Getenv(programVar), "plan", "--kubeconfig="+b.kubeconfig, "--output=json")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	peak, err = memory.Run(cmd)
	took = time.Since(began)
	if exit, exited := errors.AsType[*exec.ExitError](err); !exited || exit.ExitCode() != plan.ExitBlocked && exit.ExitCode() != plan.ExitWork {
		return 0, 0, fmt.Errorf("imds-migrate plan: %v: %s", err, &stderr)
	}
	var made plan.Plan
	if err := json.Unmarshal(stdout.Bytes(), &made); err != nil {
		return 0, 0, err
	}
	if want := b.namespaces * workloads; made.Summary.ByToday[plan.ByPodIdentity] != want/2 || len(made.Workloads) != want {
		return 0, 0, fmt.Errorf("%d workloads, %+v", len(made.Workloads), made.Summary.ByToday)
	}
	return took, peak, nil
}
