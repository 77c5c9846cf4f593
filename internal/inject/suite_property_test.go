package inject_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"

	"imds-oidc-proxy/internal/inject"
)

// FuzzPod: what has to hold for any pod. The seeds alone run as a test.
func FuzzPod(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(seed, seed%5 == 0)
	}
	f.Fuzz(func(t *testing.T, seed uint64, postStart bool) {
		document := randomPod(t, seed)
		if !bytes.Equal(document, randomPod(t, seed)) {
			t.Fatal("the same seed makes another pod")
		}
		c := config()
		c.PostStart = postStart
		checkProperties(t, document, c)
	})
}

func randomPod(t *testing.T, seed uint64) []byte {
	t.Helper()
	r := random{Rand: rand.New(rand.NewPCG(seed, 1))}
	document, err := json.Marshal(r.pod())
	if err != nil {
		t.Fatal(err)
	}
	return document
}

func checkProperties(t *testing.T, document []byte, c inject.Config) {
	pod := decode(t, document)
	result, err := inject.Pod(pod, account(), c)
	if err != nil {
		if _, refused := errors.AsType[*inject.Refusal](err); !refused || len(result.Patch) > 0 {
			t.Fatalf("%v, %v", result, err)
		}
		return
	}
	if again, err := inject.Pod(pod, account(), c); err != nil || !reflect.DeepEqual(again, result) {
		t.Fatalf("the same pod, another answer: %v, before %v", again, result)
	}
	patched := apply(t, document, result.Patch)
	if !holds(parse(t, patched), parse(t, document)) {
		t.Fatalf("something of the pod is lost or changed:\n%s\n%s", document, patched)
	}
	once := decode(t, patched)
	checkValid(t, once)
	if again, err := inject.Pod(once, account(), c); err != nil || len(again.Patch) > 0 {
		t.Fatalf("second pass: %v, %v\n%s", again.Patch, err, patched)
	}
	if again, err := inject.Pod(defaulted(once), account(), c); err != nil || len(again.Patch) > 0 {
		t.Fatalf("second pass, after the API server's defaults: %v, %v\n%s", again.Patch, err, patched)
	}
	checkWayBack(t, document, patched)
}

// checkWayBack: the pod is as it was, or what is not is told; and nothing else is told.
func checkWayBack(t *testing.T, document, patched []byte) {
	t.Helper()
	restored := apply(t, patched, inject.Remove(decode(t, patched)).Patch)
	told := inject.Differences(decode(t, document), decode(t, restored))
	if exact := reflect.DeepEqual(bare(parse(t, restored)), bare(parse(t, document))); exact != (len(told) == 0) {
		t.Fatalf("exact: %t, told: %q; removed:\n%s\nwant\n%s", exact, told, restored, document)
	}
	if again := inject.Remove(decode(t, restored)).Patch; len(again) > 0 {
		t.Fatalf("removed twice, something more goes: %v\n%s", again, restored)
	}
}

func parse(t testing.TB, document []byte) any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.UseNumber() // as written: to the byte
	var tree any
	if err := decoder.Decode(&tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// holds reports whether all of a document is in another: fields by name, elements of
// lists in their order, with others between them.
func holds(have, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		have, ok := have.(map[string]any)
		for key := range want {
			_, there := have[key]
			ok = ok && there && holds(have[key], want[key])
		}
		return ok
	case []any:
		have, ok := have.([]any)
		for len(want) > 0 && len(have) > 0 {
			if holds(have[0], want[0]) {
				want = want[1:]
			}
			have = have[1:]
		}
		return ok && len(want) == 0
	case nil:
		return true // a field without value is one that is absent
	}
	return reflect.DeepEqual(have, want)
}

// bare is a tree without the fields that say nothing: absent, null and an empty list
// are the same to the API server.
func bare(tree any) any {
	switch tree := tree.(type) {
	case map[string]any:
		for key, value := range tree {
			if list, isList := value.([]any); value == nil || isList && len(list) == 0 {
				delete(tree, key)
				continue
			}
			bare(value)
		}
	case []any:
		for _, value := range tree {
			bare(value)
		}
	}
	return tree
}
