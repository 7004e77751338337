package bpf

import (
	"errors"

	"github.com/cilium/ebpf"
)

// A walker reads all of a map, many entries with one system call, into buffers
// that it keeps.
type walker[K, V any] struct {
	keys   []K
	values []V
}

// each calls f for each entry. Of a per-CPU map an entry has as many values as
// there may be CPUs, of others one; f has them until it returns.
func (w *walker[K, V]) each(m *ebpf.Map, perEntry int, f func(*K, []V)) error {
	if w.keys == nil {
		n := 1024
		if perEntry > 1 {
			n = 256
		}
		w.keys, w.values = make([]K, n), make([]V, n*perEntry)
	}
	var cursor ebpf.MapBatchCursor
	for last := false; !last; {
		n, err := m.BatchLookup(&cursor, w.keys, w.values, nil)
		if last = errors.Is(err, ebpf.ErrKeyNotExist); err != nil && !last {
			return err
		}
		for i := range n {
			f(&w.keys[i], w.values[i*perEntry:(i+1)*perEntry])
		}
	}
	return nil
}

// remove deletes entries, those that are gone already excepted.
func remove[K any](m *ebpf.Map, keys []K) error {
	var errs []error
	for i := range keys {
		if err := m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
