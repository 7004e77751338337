package diagnose

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"
)

// TestEventsAreKeptFairly: the events of one owner take no room from another's,
// whichever come first. Events left out are counted for their owner.
func TestEventsAreKeptFairly(t *testing.T) {
	const most, flood, few = 100, 1000, 20
	begin := time.Unix(1000, 0)
	for _, c := range []struct {
		name string
		// order returns the owner of the i-th event
		order func(i int) string
	}{
		{"the flood first", func(i int) string {
			if i < flood {
				return "lab/thief-0"
			}
			return fmt.Sprintf("shop/web-%d", i%2)
		}},
		{"the flood last", func(i int) string {
			if i >= 2*few {
				return "lab/thief-0"
			}
			return fmt.Sprintf("shop/web-%d", i%2)
		}},
		{"by turns", func(i int) string {
			if i%26 != 0 {
				return "lab/thief-0"
			}
			return fmt.Sprintf("shop/web-%d", i/26%2)
		}},
	} {
		o := occurrences{most: most}
		offered := map[string]uint64{}
		for i := range flood + 2*few {
			name := c.order(i)
			offered[name]++
			o.keep(name, occurrence{typ: "PacketLoss", owner: name, at: begin.Add(time.Duration(i)), n: 1}, 0)
		}
		list, left := o.since(begin)
		kept := map[string]uint64{}
		for i, x := range list {
			kept[x.owner]++
			if i > 0 && x.at.Before(list[i-1].at) {
				t.Errorf("%s: not in the order of time", c.name)
			}
		}
		if len(list) != most {
			t.Errorf("%s: %d events kept, want %d", c.name, len(list), most)
		}
		for name, n := range offered {
			if kept[name]+left[leftOut{name, "PacketLoss"}] != n {
				t.Errorf("%s: of %d events of %s %d are kept and %d left out", c.name, n, name, kept[name], left[leftOut{name, "PacketLoss"}])
			}
			if name != "lab/thief-0" && kept[name] != n {
				t.Errorf("%s: of %d events of %s only %d are kept", c.name, n, name, kept[name])
			}
		}
	}
}

// TestHeldBackIsOfItsOwner: suppressed events count for their own owner and type.
func TestHeldBackIsOfItsOwner(t *testing.T) {
	var o occurrences
	o.keep("shop/web-0", occurrence{typ: "TCPRESET_ACTIVE", n: 1}, 7)
	o.keep("shop/web-1", occurrence{typ: "TCPRESET_ACTIVE", n: 1}, 0)
	if _, left := o.since(time.Time{}); len(left) != 1 || left[leftOut{"shop/web-0", "TCPRESET_ACTIVE"}] != 7 {
		t.Errorf("left out: %v", left)
	}
}

// TestFairShare: a class with few elements keeps all of them, and the room is used up.
func TestFairShare(t *testing.T) {
	for _, c := range []struct {
		all  map[string]int
		most int
		want map[string]int
	}{
		{map[string]int{"a": 3, "b": 4}, 7, map[string]int{"a": 3, "b": 4}},
		{map[string]int{"a": 1000, "b": 4}, 10, map[string]int{"a": 6, "b": 4}},
		{map[string]int{"a": 1000, "b": 1000}, 10, map[string]int{"a": 5, "b": 5}},
		{map[string]int{"a": 1000, "b": 1, "c": 1000, "d": 2}, 10, map[string]int{"a": 3, "b": 1, "c": 3, "d": 2}},
		{map[string]int{"a": 1000}, 10, map[string]int{"a": 10}},
		{map[string]int{"a": 9, "b": 9, "c": 9}, 2, map[string]int{"a": 1, "b": 1}},
	} {
		var all []string
		for _, name := range slices.Sorted(maps.Keys(c.all)) {
			all = append(all, slices.Repeat([]string{name}, c.all[name])...)
		}
		got := map[string]int{}
		for _, name := range fairShare(all, c.most, func(s string) string { return s }) {
			got[name]++
		}
		if !maps.Equal(got, c.want) {
			t.Errorf("of %v with room for %d: %v, want %v", c.all, c.most, got, c.want)
		}
	}
}
