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

// FuzzPod checks properties that every pod must have. As a normal test it runs with the seeds only.
func FuzzPod(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(seed, seed%5 == 0)
	}
	f.Fuzz(func(t *testing.T, seed uint64, postStart bool) {
		document := randomPod(t, seed)
		if !bytes.Equal(document, randomPod(t, seed)) {
			t.Fatal("the same seed generates another pod")
		}
		c := config()
		c.PostStart, c.RecordValues = postStart, seed%2 == 0
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
		t.Fatalf("another result for the same pod: %v, before %v", again, result)
	}
	patched := apply(t, document, result.Patch)
	if !holds(parse(t, patched), parse(t, document)) {
		t.Fatalf("a part of the pod is lost or changed:\n%s\n%s", document, patched)
	}
	once := decode(t, patched)
	checkValid(t, once)
	if again, err := inject.Pod(once, account(), c); err != nil || len(again.Patch) > 0 {
		t.Fatalf("second run: %v, %v\n%s", again.Patch, err, patched)
	}
	if again, err := inject.Pod(defaulted(once), account(), c); err != nil || len(again.Patch) > 0 {
		t.Fatalf("second run, after the API server's defaults: %v, %v\n%s", again.Patch, err, patched)
	}
	checkRemove(t, document, patched)
}

// checkRemove checks that Remove restores the pod, or that Differences lists each difference, and
// nothing else.
func checkRemove(t *testing.T, document, patched []byte) {
	t.Helper()
	restored := apply(t, patched, inject.Remove(decode(t, patched)).Patch)
	differences := inject.Differences(decode(t, document), decode(t, restored))
	if exact := reflect.DeepEqual(bare(parse(t, restored)), bare(parse(t, document))); exact != (len(differences) == 0) {
		t.Fatalf("exact: %t, differences: %q; removed:\n%s\nwant\n%s", exact, differences, restored, document)
	}
	if again := inject.Remove(decode(t, restored)).Patch; len(again) > 0 {
		t.Fatalf("a second Remove removes more: %v\n%s", again, restored)
	}
}

func parse(t testing.TB, document []byte) any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.UseNumber() // keeps numbers as they are written
	var tree any
	if err := decoder.Decode(&tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

// holds reports whether have contains everything in want: fields by name, and elements of lists
// in their order, possibly with others between them.
func holds(have, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		have, ok := have.(map[string]any)
		for key := range want {
			_, exists := have[key]
			ok = ok && exists && holds(have[key], want[key])
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
		return true // a null field is equal to a missing one
	}
	return reflect.DeepEqual(have, want)
}

// bare returns a tree without null fields and empty lists, which the API server treats like
// missing fields.
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
