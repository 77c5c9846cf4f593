package survey

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"

	corev1 "k8s.io/api/core/v1"
)

// EachPod calls visit with each pod of a namespace, or of all namespaces if it is empty. It lists the pods
// in pages, and visit may keep a pod.
func EachPod(ctx context.Context, client Client, namespace string, visit func(*corev1.Pod)) error {
	path := "/api/v1/pods"
	if namespace != "" {
		path = "/api/v1/namespaces/" + namespace + "/pods"
	}
	for next := ""; ; {
		query := url.Values{"limit": {"500"}}
		if next != "" {
			query.Set("continue", next)
		}
		list, err := podPage(ctx, client, path, query)
		if err != nil {
			return fmt.Errorf("cannot list pods: %w", err)
		}
		for i := range list.Items {
			visit(&list.Items[i])
		}
		if next = list.Continue; next == "" {
			return nil
		}
	}
}

func podPage(ctx context.Context, client Client, path string, query url.Values) (*corev1.PodList, error) {
	body, err := client.Get(ctx, path, query)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	list := new(corev1.PodList)
	err = json.NewDecoder(body).Decode(list)
	_, _ = io.Copy(io.Discard, body) // so that the connection can be used again
	return list, err
}
