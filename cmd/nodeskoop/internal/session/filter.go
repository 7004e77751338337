package session

import (
	"fmt"
	"slices"
	"strings"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
)

// Filter says which events, and which pods, to show.
type Filter struct {
	pods  [][2]string // namespace ("" is any) and name
	types map[string]bool
}

// NewFilter makes a Filter from the arguments of --pod and of --event. Without
// any it lets all through.
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

// WantsProbe reports whether a probe has events to show.
func (w Filter) WantsProbe(p *catalog.Probe) bool {
	return len(w.types) == 0 || slices.ContainsFunc(p.Events, func(e catalog.EventType) bool { return w.types[e.Name] })
}

// Wants reports whether an event is to be shown.
func (w Filter) Wants(e *event.Event) bool {
	if len(w.types) > 0 && !w.types[e.Type.Name] {
		return false
	}
	if len(w.pods) == 0 {
		return true
	}
	return slices.ContainsFunc(w.pods, func(want [2]string) bool {
		switch want {
		case [2]string{"", "host"}, [2]string{owner.DefaultHostLabel, owner.DefaultHostLabel}:
			return e.OfHost()
		case [2]string{"", owner.UnknownLabel}, [2]string{owner.UnknownLabel, owner.UnknownLabel}:
			return e.Unattributed()
		}
		return slices.ContainsFunc([]*owner.Pod{e.Pod, e.Src.Pod, e.Dst.Pod}, func(p *owner.Pod) bool {
			return p != nil && p.Name == want[1] && (want[0] == "" || p.Namespace == want[0])
		})
	})
}

// WantsPod reports whether a pod, or the host, is to be shown.
func (w Filter) WantsPod(host bool, namespace, name string) bool {
	return len(w.pods) == 0 || slices.ContainsFunc(w.pods, func(want [2]string) bool {
		if want == [2]string{"", "host"} {
			return host
		}
		return !host && name == want[1] && (want[0] == "" || want[0] == namespace)
	})
}
