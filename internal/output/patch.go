package output

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/plan"
)

// kustomization is a kustomize component.
type kustomization struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"`
	Resources  []string         `json:"resources,omitempty"`
	Patches    []kustomizePatch `json:"patches"`
}

type kustomizePatch struct {
	Target target `json:"target"`
	Patch  string `json:"patch"`
}

type target struct {
	Group     string `json:"group,omitempty"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

// operation is an operation of a JSON patch.
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value string `json:"value,omitempty"`
}

// writePatch writes a kustomize component with the changes of fields.
func writePatch(w io.Writer, p *plan.Plan, _ Config) error {
	return component(w, p, nil)
}

func component(w io.Writer, p *plan.Plan, resources []string) error {
	patches, skipped := p.Patches()
	l := new(lines)
	l.add("%s", marker)
	l.add("# Use it in a kustomization: components: [DIRECTORY]. Create the federated credentials first.")
	for _, a := range p.Accounts {
		if a.New && resources == nil {
			l.add("# ServiceAccount %s/%s is new: --write adds it, and so do the formats az, terraform, aso and crossplane.", comment(a.Namespace), comment(a.Name))
		}
	}
	for _, s := range skipped {
		l.add("# Not changed: %s", comment(s))
	}
	k := kustomization{APIVersion: "kustomize.config.k8s.io/v1alpha1", Kind: "Component", Resources: resources, Patches: []kustomizePatch{}}
	for _, patch := range patches {
		text, err := patchText(patch)
		if err != nil {
			return err
		}
		k.Patches = append(k.Patches, kustomizePatch{target{patch.Group, patch.Kind, patch.Namespace, patch.Name}, text})
	}
	text, err := yaml.Marshal(k)
	l.WriteString(string(text))
	if err != nil {
		return err
	}
	return l.to(w)
}

// patchText returns a strategic merge patch, or a JSON patch if a path contains the position in a list.
func patchText(p plan.Patch) (string, error) {
	inList := slices.ContainsFunc(p.Changes, func(c plan.Change) bool {
		return slices.ContainsFunc(c.Path, func(key string) bool { _, err := strconv.Atoi(key); return err == nil })
	})
	var body any = merge(p)
	if inList {
		body = operations(p)
	}
	text, err := yaml.Marshal(body)
	return "# " + comment(p.Reason) + "\n" + string(text), err
}

func merge(p plan.Patch) map[string]any {
	version := p.Version
	if p.Group != "" {
		version = p.Group + "/" + p.Version
	}
	body := map[string]any{"apiVersion": version, "kind": p.Kind, "metadata": metadata(p.Namespace, p.Name, nil)}
	p.Merge(body)
	return body
}

func operations(p plan.Patch) []operation {
	var all []operation
	for _, c := range p.Changes {
		path := ""
		for _, key := range c.Path {
			path += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
		}
		if c.Remove {
			all = append(all, operation{Op: "remove", Path: path})
		} else {
			all = append(all, operation{Op: "add", Path: path, Value: c.Value})
		}
	}
	return all
}

// marker is the first line of files that [WriteDir] may replace.
const marker = "# Changes of a migration to workload identity, written by imds-migrate plan."

// WriteDir writes a kustomize component with the changes, and new service accounts, into a directory. It
// replaces only files that it has written.
func WriteDir(dir string, p *plan.Plan) error {
	accounts := new(lines)
	accounts.add("%s", marker)
	var resources []string
	for _, a := range p.Accounts {
		if !a.New {
			continue
		}
		resources = []string{"accounts.yaml"}
		if err := accounts.account(a); err != nil {
			return err
		}
	}
	text := new(strings.Builder)
	if resources == nil {
		resources = []string{} // there is none to add
	}
	if err := component(text, p, resources); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := map[string]string{"kustomization.yaml": text.String()}
	if len(resources) > 0 {
		files["accounts.yaml"] = accounts.String()
	}
	for _, name := range sortedKeys(files) {
		if err := replaceable(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(files) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(files[name]), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// replaceable returns an error for a file that a person has written.
func replaceable(file string) error {
	text, err := os.ReadFile(file)
	if err == nil && !strings.HasPrefix(string(text), marker+"\n") {
		return &UsageError{"--write: " + file + " is not of imds-migrate: choose another directory"}
	}
	if os.IsNotExist(err) {
		return nil
	}
	return err
}
