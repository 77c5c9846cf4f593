package survey

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// Client sends GET requests to an API server.
type Client interface {
	// Get returns the body of a successful answer. Other answers are errors of package
	// k8s.io/apimachinery/pkg/api/errors.
	Get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error)
}

// NewClient returns a client for a cluster. It follows no redirects: a pod that answers through the API
// server's proxy could send the person's credentials to any host.
func NewClient(config *rest.Config) (Creator, error) {
	config = rest.CopyConfig(config)
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"}) // Status, the body of an error
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	// One request at a time: the API server's own priority and fairness limit the rate.
	config.QPS = -1
	// Warnings about old versions are for those who write objects.
	config.WarningHandler = rest.NoWarnings{}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return bounded{next} })
	transport, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	transport.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client, err := rest.UnversionedRESTClientForConfigAndClient(config, transport)
	if err != nil {
		return nil, err
	}
	return restClient{client}, nil
}

// maxError bounds the body of an answer that is an error, which client-go reads as a whole. Those of the
// API server have a few hundred bytes.
const maxError = 1 << 20

// bounded limits the body of answers that are errors: through the API server's proxy, a pod may have sent
// them.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err == nil && (resp.StatusCode < 200 || resp.StatusCode > 299) {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxError), resp.Body}
	}
	return resp, err
}

// Creator also sends objects: for dry runs and reviews of the person's own rights, which store nothing.
type Creator interface {
	Client
	// Create sends an object and decodes the answer.
	Create(ctx context.Context, path string, query url.Values, object, answer any) error
}

type restClient struct{ client *rest.RESTClient }

func (c restClient) Create(ctx context.Context, path string, query url.Values, object, answer any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return err
	}
	request := c.client.Post().AbsPath(path).SetHeader("Accept", "application/json").SetHeader("Content-Type", "application/json").Body(body)
	for name, values := range query {
		for _, value := range values {
			request.Param(name, value)
		}
	}
	result := request.Do(ctx)
	if err := result.Error(); err != nil { // decodes the reason of a refusal
		return err
	}
	text, err := result.Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(text, answer)
}

func (c restClient) Get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	request := c.client.Get().AbsPath(path).SetHeader("Accept", "application/json")
	for name, values := range query {
		for _, value := range values {
			request.Param(name, value)
		}
	}
	return request.Stream(ctx)
}
