package event

// whose is the owner with whom an event shares limits and room: a pod, all unowned
// namespaces together, unattributed, or, with no field set, the host.
type whose struct {
	pod          string
	unowned      bool
	unattributed bool
}

// ownerOf returns the owner of a labelled event.
func ownerOf(e *Event) (w whose) {
	switch {
	case e.Pod != nil:
		// Two sandboxes of one pod are one owner.
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

// bucketKey is an event type and an owner.
type bucketKey struct {
	typ int
	whose
	rest bool // all owners for which there is no bucket left
}

// bucketOf returns the key of an event's limit.
func bucketOf(e *Event) bucketKey { return bucketKey{typ: e.Type.ID(), whose: ownerOf(e)} }
