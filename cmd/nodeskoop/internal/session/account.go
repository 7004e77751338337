package session

import (
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
)

// Keep implements collect.Kept: it stores the account of events by type name.
func (e *Events) Keep(b []byte) []byte {
	for _, t := range catalog.Events() {
		n := e.Hub.Counts(t)
		if n.Offered == 0 {
			continue
		}
		b = collect.AppendUints(b, uint64(len(t.Name)))
		b = append(b, t.Name...)
		b = collect.AppendUints(b, n.Written, n.Suppressed, n.Lost, n.Ignored, n.Pending)
	}
	return b
}

// Recall implements collect.Kept. Events that were pending when the earlier run
// saved its account count as lost, unless a clean shutdown has written them.
func (e *Events) Recall(b []byte) error {
	all := map[*catalog.EventType]event.Counts{}
	d := collect.NewDecoder(b)
	for d.More() {
		t := catalog.EventByName(string(d.Bytes()))
		n := event.Counts{Written: d.Uint(), Suppressed: d.Uint(), Lost: d.Uint(), Ignored: d.Uint(), Pending: d.Uint()}
		if t != nil {
			all[t] = n
		}
	}
	if err := d.Err(); err != nil {
		return err
	}
	for t, n := range all {
		e.Hub.Recall(t, n)
	}
	return nil
}
