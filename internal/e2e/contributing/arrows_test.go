package contributing

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// below lists what each package may import from the project. Packages that are not
// listed are not checked. Helpers without an entry may be imported by all.
var below = map[string][]string{
	"bpf/internal/objects": {},
	"bpf":                  {"bpf/internal/objects"},
	"internal/kernel":      {},
	"internal/bounded":     {},
	"internal/quote":       {},
	"collect/catalog":      {},
	"collect/owner":        {"collect/catalog"},
	"collect/event":        {"bpf", "collect/catalog", "collect/owner"},
	"collect":              {"bpf", "collect/catalog", "collect/owner"},
	"collect/pod":          {"collect/owner"},
	"collect/escalate":     {"collect", "collect/catalog"},
	"collect/proc":         {"bpf", "collect", "collect/catalog", "collect/owner", "collect/netlink"},
	"collect/netlink":      {"bpf", "collect", "collect/catalog", "collect/owner"},
	"collect/trace":        {"bpf", "collect", "collect/catalog", "collect/owner", "collect/event"},
	"output":               {"collect/catalog", "collect/event", "collect/owner"},
	"output/history":       {"collect/catalog"},
	"systemd":              {"collect/catalog", "collect/event"},
}

var helpers = []string{"internal/kernel", "internal/bounded", "internal/quote"}

// TestArrows: imports go in one direction, as the table in CONTRIBUTING.md says.
func TestArrows(t *testing.T) {
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
	cmd.Dir = "../../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		room := strings.TrimPrefix(f[0], "nodeskoop/")
		may, ruled := below[room]
		if !ruled {
			continue
		}
		seen++
		for _, i := range f[1:] {
			i, ours := strings.CutPrefix(i, "nodeskoop/")
			if ours && !slices.Contains(may, i) && !slices.Contains(helpers, i) {
				t.Errorf("%s imports %s", room, i)
			}
		}
	}
	if seen != len(below) {
		t.Errorf("%d of %d rooms are there", seen, len(below))
	}
}
