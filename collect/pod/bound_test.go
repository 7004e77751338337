package pod

import (
	"fmt"
	"maps"
	"runtime"
	"strings"
	"testing"

	"nodeskoop/internal/testkit/need"
)

// TestBound: a bounded record is small whatever its input, keeps the labels that the caller
// names, and is the same each time.
func TestBound(t *testing.T) {
	many := map[string]string{"app": "web", "zone": "b", "long": strings.Repeat("x", 5000)}
	for i := range 10_000 {
		many[fmt.Sprintf("label-%05d", i)] = strings.Repeat("v", 63)
	}
	few := map[string]string{"app": "web", "zone": "b", "empty": ""}
	if kept, left := boundLabels(few, []string{"none"}); !maps.Equal(kept, few) || left != 0 {
		t.Errorf("of %v: %v, %d left out", few, kept, left)
	}
	if kept, left := boundLabels(nil, []string{"a"}); kept != nil || left != 0 {
		t.Errorf("of none: %v, %d left out", kept, left)
	}
	kept, left := boundLabels(many, []string{"zone", "label-09999", "absent", "long"})
	if kept["zone"] != "b" || kept["label-09999"] == "" || kept["app"] != "web" {
		t.Errorf("what is named is not kept: %v", kept)
	}
	if _, ok := kept["absent"]; ok {
		t.Error("a label that the pod does not have is kept")
	}
	if _, ok := kept["long"]; ok {
		t.Error("a value longer than there are is kept")
	}
	if len(kept) != maxLabels+2 || left != len(many)-len(kept) {
		t.Errorf("%d labels kept, %d left out of %d", len(kept), left, len(many))
	}
	again, _ := boundLabels(many, []string{"zone", "label-09999", "absent", "long"})
	if !maps.Equal(kept, again) {
		t.Error("other labels are kept the second time")
	}
	big := map[string]string{}
	for i := range 60 {
		big[fmt.Sprint(i)] = strings.Repeat("v", 4000)
	}
	kept, _ = boundLabels(big, nil)
	if size := len(kept) * 4000; size > maxLabelBytes || size == 0 {
		t.Errorf("%d bytes are kept", size)
	}

	a := &about{namespace: "ns", name: strings.Repeat("n", 1000), uid: strings.Repeat("\xc3\xa9", 500), netnsPath: strings.Repeat("/x", 5000)}
	b := &about{name: strings.Repeat("n", 999) + "m"}
	a.bound(nil)
	b.bound(nil)
	if a.namespace != "ns" || len(a.name) > maxName || len(a.uid) > maxName || a.netnsPath != "" || a.name == b.name || !strings.HasPrefix(a.name, "nnn") {
		t.Errorf("%+v, %q", a, b.name)
	}
}

// TestBoundMemory: pods with a megabyte of labels each cost little.
func TestBoundMemory(t *testing.T) {
	need.Short(t)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var all []*about
	for i := range 110 {
		l := map[string]string{"app": fmt.Sprint("web-", i)}
		for j := range 15_000 {
			l[fmt.Sprintf("k-%d-%d", i, j)] = strings.Repeat("v", 63)
		}
		a := &about{labels: l}
		a.bound([]string{"app"})
		all = append(all, a)
	}
	if grown := heap() - before; grown > 4<<20 {
		t.Errorf("110 pods keep %d kB", grown>>10)
	}
	for i, a := range all {
		if a.labels["app"] != fmt.Sprint("web-", i) {
			t.Errorf("pod %d: app is %q", i, a.labels["app"])
		}
	}
}
