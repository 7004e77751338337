package event

import "time"

// maxKinds is how many kinds may be open. Beyond it the owner with the most kinds loses its
// oldest, so that no owner takes another's room.
const maxKinds = 4096

// holder is the list of one owner's open kinds.
type holder struct {
	who         whose
	kinds       int
	first, last *kind
}

// hold appends a new kind to its owner's list.
func (ks *kinds) hold(k *kind) {
	who := k.of.key.whose
	o := ks.owners[who]
	if o == nil {
		o = &holder{who: who}
		ks.owners[who] = o
	}
	k.owner, k.prev = o, o.last
	if k.prev == nil {
		o.first = k
	} else {
		k.prev.next = k
	}
	o.last = k
	o.kinds++
}

// release removes a kind from its owner's list.
func (ks *kinds) release(k *kind) {
	o := k.owner
	if k.prev == nil {
		o.first = k.next
	} else {
		k.prev.next = k.next
	}
	if k.next == nil {
		o.last = k.prev
	} else {
		k.next.prev = k.prev
	}
	k.prev, k.next = nil, nil
	if o.kinds--; o.kinds == 0 {
		delete(ks.owners, o.who)
	}
}

// makeRoom closes the oldest kind of the owner that has the most kinds.
func (ks *kinds) makeRoom(now time.Time) {
	var most *holder
	for _, o := range ks.owners {
		if most == nil || o.kinds > most.kinds {
			most = o
		}
	}
	if most != nil {
		ks.close(most.first, now)
	}
}
