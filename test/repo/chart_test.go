package repo

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const chartDir = repository + "/charts/imds-oidc-proxy"

// TestChartValues: the table in the chart's README has the comments of values.yaml, and every
// value has a comment.
func TestChartValues(t *testing.T) {
	text, err := os.ReadFile(chartDir + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("| value | default | meaning |\n|---|---|---|\n")
	writeValues(t, &b, "", root.Content[0])
	checkGenerated(t, chartDir+"/README.md", map[string]string{"values": b.String()})
}

// writeValues writes a row for each value. A mapping whose keys have comments is a branch, and
// gets a row for each key; a mapping without comments is a single value.
func writeValues(t *testing.T, b *strings.Builder, path string, mapping *yaml.Node) {
	t.Helper()
	for i := 0; i < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		name := strings.TrimPrefix(path+"."+key.Value, ".")
		if isBranch(value) {
			writeValues(t, b, name, value)
			continue
		}
		// For the first value, HeadComment begins with the comment of the file.
		comment := key.HeadComment[strings.LastIndex(key.HeadComment, "\n\n")+1:]
		meaning := strings.TrimSpace(strings.NewReplacer("\n# ", " ", "# ", "").Replace(comment))
		if meaning == "" {
			t.Errorf("%s has no comment in values.yaml", name)
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", name, code(flow(t, value)), strings.ReplaceAll(meaning, "|", `\|`))
	}
}

func isBranch(value *yaml.Node) bool {
	if value.Kind != yaml.MappingNode {
		return false
	}
	for i := 0; i < len(value.Content); i += 2 {
		if value.Content[i].HeadComment != "" || isBranch(value.Content[i+1]) && value.Content[i+1].Content[0].HeadComment != "" {
			return true
		}
	}
	return false
}

// flow returns a value as YAML on one line.
func flow(t *testing.T, value *yaml.Node) string {
	t.Helper()
	setFlow(value)
	text, err := yaml.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(strings.TrimSpace(string(text)), `"`)
}

func setFlow(node *yaml.Node) {
	node.Style |= yaml.FlowStyle
	for _, child := range node.Content {
		setFlow(child)
	}
}
