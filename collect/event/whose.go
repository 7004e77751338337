package event

// whose names who an event belongs to, as far as limits and room are shared
// between owners: a pod; all unowned namespaces together; what is unattributed;
// or, with none of these, the host.
type whose struct {
	pod          string
	unowned      bool
	unattributed bool
}

// ownerOf says whose an event is, once the Hub has labelled it.
func ownerOf(e *Event) (w whose) {
	switch {
	case e.Pod != nil:
		// Two sandboxes of one pod are one.
		if w.pod = e.Pod.UID; w.pod == "" {
			w.pod = e.Pod.ID
		}
	case e.unowned:
		w.unowned = true
	case e.unattributed:
		w.unattributed = true
	}
	return w
}

// bucketKey names a type's events of one owner.
type bucketKey struct {
	typ int
	whose
	rest bool // of all owners for which there was no room
}

// bucketOf says which limit an event counts against.
func bucketOf(e *Event) bucketKey { return bucketKey{typ: e.Type.ID(), whose: ownerOf(e)} }
