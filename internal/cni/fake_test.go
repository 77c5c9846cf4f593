package cni

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"imds-oidc-proxy/internal/cnirequest"
	"imds-oidc-proxy/internal/netrules"
)

// fakeRedirect records what it is asked to do.
type fakeRedirect struct {
	installed, checked []netrules.Config
	err                error
}

func (f *fakeRedirect) redirect() Redirect {
	return Redirect{
		Install: func(_ *os.File, c netrules.Config) error { f.installed = append(f.installed, c); return f.err },
		Check:   func(_ *os.File, c netrules.Config) error { f.checked = append(f.checked, c); return f.err },
	}
}

// asking is the text of the annotation for the default port and user.
var asking = cnirequest.New(8000, 1501, 1501).String()

// prevResult has a key that no version of the specification has, and white space, which the
// plugin must pass on unchanged.
const prevResult = `{ "cniVersion": "1.0.0",  "ips": [ {"address": "192.0.2.5/24", "new": 1e2} ], "example.test/key": {"b": 1, "a": 2} }`

// stdin returns the configuration of one call. The values are JSON, and "" leaves a key out.
func stdin(t *testing.T, annotations, prevResult, more string) *skel.CmdArgs {
	t.Helper()
	text := `{"cniVersion":"1.0.0","name":"pods","type":"imds-cni"` + more
	if annotations != "" {
		text += `,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":` + annotations + `}`
	}
	if prevResult != "" {
		text += `,"prevResult":` + prevResult
	}
	text += "}"
	if !json.Valid([]byte(text)) {
		t.Fatalf("this test made invalid JSON: %s", text)
	}
	return &skel.CmdArgs{ContainerID: "c", Netns: "/nowhere", IfName: "eth0", StdinData: []byte(text)}
}

// annotationsOf returns the annotations of a pod as JSON: the kubelet's, and that of the plugin.
func annotationsOf(request string) string {
	text, _ := json.Marshal(map[string]string{"kubernetes.io/config.seen": "2026-11-28T00:00:00Z", cnirequest.Annotation: request})
	return string(text)
}
