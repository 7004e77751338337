package session

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
)

// Filter selects the events and pods to show.
type Filter struct {
	pods  [][2]string // namespace ("" matches any) and name
	types map[string]bool
}

// NewFilter creates a Filter from the arguments of --pod and --event. An empty
// Filter selects all.
func NewFilter(pods, types []string) (Filter, error) {
	w := Filter{types: map[string]bool{}}
	for _, p := range pods {
		namespace, name, both := strings.Cut(p, "/")
		if !both {
			namespace, name = "", p
		}
		if name == "" || both && namespace == "" {
			return w, fmt.Errorf("--pod: %q is not NAMESPACE/NAME", p)
		}
		w.pods = append(w.pods, [2]string{namespace, name})
	}
	for _, t := range types {
		i := slices.IndexFunc(catalog.Events(), func(e *catalog.EventType) bool { return strings.EqualFold(e.Name, t) })
		if i < 0 {
			var names []string
			for _, e := range catalog.Events() {
				names = append(names, e.Name)
			}
			return w, fmt.Errorf("--event: no event %q: the events are %s", t, strings.Join(names, ", "))
		}
		w.types[catalog.Events()[i].Name] = true
	}
	return w, nil
}

// NamesPods reports whether the filter names pods other than the host and the
// unknown owner.
func (w Filter) NamesPods() bool {
	return slices.ContainsFunc(w.pods, func(want [2]string) bool { return !isHost(want) && !isUnknown(want) })
}

// ErrNoSuchPod means that a requested pod does not run here.
var ErrNoSuchPod = errors.New("no such pod")

// Check fails if a requested pod does not run here, and suggests similar names.
// named is why the pods are unknown, nil if they are known.
func (w Filter) Check(running []*owner.Pod, named error) error {
	for _, want := range w.pods {
		text := want[1]
		if want[0] != "" {
			text = want[0] + "/" + want[1]
		}
		if isHost(want) || isUnknown(want) || slices.ContainsFunc(running, func(p *owner.Pod) bool { return isPod(want, p) }) {
			continue
		}
		if named != nil {
			return fmt.Errorf("--pod: %q cannot be found: %w", text, named)
		}
		return noSuchPod{text, nearest(text, running)}
	}
	return nil
}

// noSuchPod is the ErrNoSuchPod for one pod.
type noSuchPod struct {
	pod  string
	near []string
}

func (noSuchPod) Is(target error) bool { return target == ErrNoSuchPod }

func (e noSuchPod) Error() string {
	hint := "nodeskoop pods lists those that do"
	if len(e.near) > 0 {
		hint = "perhaps " + strings.Join(e.near, ", ") + "? nodeskoop pods lists all"
	}
	return fmt.Sprintf("--pod: no pod %q runs here; %s", e.pod, hint)
}

// maxNearest is the number of pods that an error suggests.
const maxNearest = 5

// nearest returns the names of pods most similar to text.
func nearest(text string, running []*owner.Pod) []string {
	type candidate struct {
		name     string
		distance int
	}
	var near []candidate
	for _, p := range running {
		name, full := p.Name, p.Namespace+"/"+p.Name
		d := distance(text, full)
		if !strings.Contains(text, "/") {
			d = distance(text, name)
		}
		_, own, _ := strings.Cut(text, "/")
		if strings.Contains(full, text) || own != "" && own == name { // a part of the name, or another namespace
			d = min(d, 1)
		}
		if d <= max(2, len(text)/4) {
			near = append(near, candidate{full, d})
		}
	}
	slices.SortFunc(near, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.name, b.name))
	})
	var names []string
	for _, c := range near[:min(len(near), maxNearest)] {
		names = append(names, c.name)
	}
	return names
}

// distance is the Levenshtein distance: the number of insertions, deletions and
// substitutions that turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func isHost(want [2]string) bool {
	return want == [2]string{"", "host"} || want == [2]string{owner.DefaultHostLabel, owner.DefaultHostLabel}
}

func isUnknown(want [2]string) bool {
	return want == [2]string{"", owner.UnknownLabel} || want == [2]string{owner.UnknownLabel, owner.UnknownLabel}
}

func isPod(want [2]string, p *owner.Pod) bool {
	return p != nil && p.Name == want[1] && (want[0] == "" || p.Namespace == want[0])
}

// WantsProbe reports whether the filter selects any of a probe's events.
func (w Filter) WantsProbe(p *catalog.Probe) bool {
	return len(w.types) == 0 || slices.ContainsFunc(p.Events, func(e catalog.EventType) bool { return w.types[e.Name] })
}

// Types returns the event types to show: those requested, limited to some probes;
// nil means any probe.
func (w Filter) Types(probes []string) []*catalog.EventType {
	return slices.DeleteFunc(slices.Clone(catalog.Events()), func(t *catalog.EventType) bool {
		return len(w.types) > 0 && !w.types[t.Name] || probes != nil && !slices.Contains(probes, t.Probe())
	})
}

// Wants reports whether to show an event.
func (w Filter) Wants(e *event.Event) bool {
	if len(w.types) > 0 && !w.types[e.Type.Name] {
		return false
	}
	if len(w.pods) == 0 {
		return true
	}
	return slices.ContainsFunc(w.pods, func(want [2]string) bool {
		switch {
		case isHost(want):
			return e.OfHost()
		case isUnknown(want):
			return e.Unattributed()
		}
		return slices.ContainsFunc([]*owner.Pod{e.Pod, e.Src.Pod, e.Dst.Pod}, func(p *owner.Pod) bool { return isPod(want, p) })
	})
}

// WantsPod reports whether the filter selects a pod, or the host.
func (w Filter) WantsPod(host bool, namespace, name string) bool {
	return len(w.pods) == 0 || slices.ContainsFunc(w.pods, func(want [2]string) bool {
		if isHost(want) {
			return host
		}
		return !host && name == want[1] && (want[0] == "" || want[0] == namespace)
	})
}
