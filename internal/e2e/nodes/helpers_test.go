package nodes

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const sample = `# TYPE nodeskoop_last_cycle_timestamp_seconds gauge
nodeskoop_last_cycle_timestamp_seconds{k8s_node="node1",k8s_namespace="hostNetwork",k8s_pod="hostNetwork"} 1700000000.25
# TYPE kubeskoop_tcp_insegs counter
kubeskoop_tcp_insegs{k8s_node="node1",k8s_namespace="hostNetwork",k8s_pod="hostNetwork"} 5
kubeskoop_tcp_insegs{k8s_node="node1",k8s_namespace="default",k8s_pod="plain-node1"} 7
`

// TestParse: a file has series of each pod that it names, without duplicates.
func TestParse(t *testing.T) {
	f, err := parse([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	plain := podName{"default", "plain-node1"}
	if v, ok := f.value("kubeskoop_tcp_insegs", plain); !ok || v != 7 {
		t.Errorf("the pod's value is %v, %v", v, ok)
	}
	if diff := cmp.Diff(map[podName]int{plain: 1}, f.pods); diff != "" {
		t.Errorf("pods (-want +got):\n%s", diff)
	}
	if want := time.UnixMilli(1700000000250); !f.begin.Equal(want) {
		t.Errorf("the cycle began at %v, not %v", f.begin, want)
	}
	for name, text := range map[string]string{
		"a series twice": sample + sample,
		"a cut file":     sample[:len(sample)-3] + "\nkubeskoop_tcp_insegs{",
		"no cycle":       "kubeskoop_tcp_insegs{} 1\n",
	} {
		if _, err := parse([]byte(text)); err == nil {
			t.Errorf("%s is no error", name)
		}
	}
}

// TestFollower: a fault of a lasting pod is reported; the same in a pod that does not
// last is not a fault.
func TestFollower(t *testing.T) {
	plain := podName{"default", "plain-node1"}
	falls := strings.Replace(sample, "} 7", "} 6", 1)
	host := strings.Replace(sample, "} 5", "} 4", 1)
	gone, _, _ := strings.Cut(sample, `kubeskoop_tcp_insegs{k8s_node="node1",k8s_namespace="default"`)
	for _, c := range []struct {
		name  string
		lasts bool
		then  string
		fault string
	}{
		{"nothing changes", true, sample, ""},
		{"a counter falls", true, falls, "fell from 7 to 6"},
		{"a counter of a pod that ended falls", false, falls, ""},
		{"a counter of the host falls", false, host, "fell from 5 to 4"},
		{"a pod is missing", true, gone, "missing"},
		{"a pod is over", false, gone, ""},
		{"a file is cut", false, sample + "kubeskoop", "no sample"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &follower{lasting: map[podName]bool{}, counted: map[string]float64{}}
			if c.lasts {
				f.holds(plain)
			}
			f.take([]byte(sample))
			f.take([]byte(c.then))
			faults, reads := f.verdict()
			if reads != 2 {
				t.Errorf("%d reads", reads)
			}
			if got := strings.Join(faults, "\n"); (got != "") != (c.fault != "") || !strings.Contains(got, c.fault) {
				t.Errorf("faults %q, want %q", got, c.fault)
			}
		})
	}
}

// TestBinaries parses the output of the script binaries.
func TestBinaries(t *testing.T) {
	got, err := readBinaries("kubelet=/k\ncontainerd-2=/c\n")
	if err != nil || !maps.Equal(got, binaries{"kubelet": "/k", "containerd-2": "/c"}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"", "containerd-2=/c", "kubelet"} {
		if _, err := readBinaries(text); err == nil {
			t.Errorf("%q is no error", text)
		}
	}
}

// TestTable: the table has a row for each demand, in order, and a column for each node.
func TestTable(t *testing.T) {
	r := table{cells: map[[2]string]string{}}
	r.set("old", "churn", "in time", "yes")
	r.set("old", "upgrade", "the same", "**no**")
	r.set("new", "churn", "in time", "yes")
	const want = `| situation | demand | old | new |
|---|---|---|---|
| churn | in time | yes | yes |
| upgrade | the same | **no** | - |
`
	if diff := cmp.Diff(want, r.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestModules: the modules of the kubelet and of containerd are not in the project's
// own go.mod.
func TestModules(t *testing.T) {
	ours, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for folder, module := range map[string]string{"kubelet": "k8s.io/kubernetes", "containerd": "github.com/containerd/containerd/v2"} {
		own, err := os.ReadFile(filepath.Join(folder, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(own), module+" v") {
			t.Errorf("%s/go.mod does not require %s", folder, module)
		}
		if strings.Contains(string(ours), module+" ") {
			t.Errorf("the project's go.mod requires %s", module)
		}
	}
}
