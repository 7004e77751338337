package bpf

import (
	"errors"

	"github.com/cilium/ebpf"
)

// A walker reads a whole map in batches of many entries per system call, into
// buffers that it reuses.
type walker[K, V any] struct {
	keys   []K
	values []V
}

// each calls f for each entry. An entry of a per-CPU map has one value per possible
// CPU, an entry of another map has one. The values are valid until f returns.
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

// remove deletes entries and ignores those that are already gone.
func remove[K any](m *ebpf.Map, keys []K) error {
	var errs []error
	for i := range keys {
		if err := m.Delete(&keys[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
