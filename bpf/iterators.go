package bpf

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// KernelTypes is the kernel's type information, which is slow to read and large.
// Use it for several loads in sequence, then release it. The zero value reads it on
// first use.
type KernelTypes struct {
	mu    sync.Mutex
	types *kernelTypes
}

func (k *KernelTypes) use(f func(*kernelTypes) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.types == nil {
		types, err := newKernelTypes()
		if err != nil {
			return err
		}
		k.types = types
	}
	return f(k.types)
}

// Release returns the memory to the system.
func (k *KernelTypes) Release() {
	k.mu.Lock()
	held := k.types != nil
	k.types = nil
	k.mu.Unlock()
	if held {
		debug.FreeOSMemory()
	}
}

// iterators are task iterators (kernel/bpf/task_iter.c, since 5.8), BPF programs
// that run over all processes on request, and the map "processes", into which they
// write a V per process. Between readings no program runs.
type iterators[V any] struct {
	coll       *ebpf.Collection
	links      []*link.Iter
	generation uint32          // number of the last reading
	of         func(*V) uint32 // number of the reading that wrote a value
	stale      []uint32
	walker     walker[uint32, V]
}

// load loads and attaches the programs, which run in the given order. The error
// says why the kernel or the process's privileges do not allow it.
func (it *iterators[V]) load(types *KernelTypes, spec *ebpf.CollectionSpec, of func(*V) uint32, programs ...string) error {
	it.of = of
	_ = rlimit.RemoveMemlock() // see New
	if err := types.use(func(t *kernelTypes) (err error) {
		if it.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: t.cache}); err != nil {
			return fmt.Errorf("load iterators over processes: %w", explain(err))
		}
		return nil
	}); err != nil {
		return err
	}
	for _, name := range programs {
		l, err := link.AttachIter(link.IterOptions{Program: it.coll.Programs[name]})
		if err != nil {
			return errors.Join(fmt.Errorf("attach the iterator %s: %w", name, explain(err)), it.Close())
		}
		it.links = append(it.links, l)
	}
	return nil
}

// Close frees the programs.
func (it *iterators[V]) Close() error {
	var errs []error
	for _, l := range it.links {
		errs = append(errs, l.Close())
	}
	it.coll.Close()
	return errors.Join(errs...)
}

// maxIteration limits the CPU time for a reading of all processes. An iterator visits
// about ten million descriptors per second. Time in which the thread waited for a CPU
// does not count: a busy node has no more descriptors than an idle one.
const maxIteration = time.Second

// each runs the programs and passes each process to see.
func (it *iterators[V]) each(see func(pid uint32, v *V)) error {
	runtime.LockOSThread() // for threadTime
	defer runtime.UnlockOSThread()
	end := threadTime() + maxIteration
	it.generation++
	if err := it.coll.Variables["generation"].Set(it.generation); err != nil {
		return fmt.Errorf("begin to iterate over processes: %w", err)
	}
	for _, l := range it.links {
		if err := iterate(l, end); err != nil {
			return fmt.Errorf("iterate over processes: %w", err)
		}
	}
	it.stale = it.stale[:0]
	m := it.coll.Maps["processes"]
	err := it.walker.each(m, 1, func(pid *uint32, values []V) {
		if v := &values[0]; it.of(v) == it.generation {
			see(*pid, v)
		} else {
			it.stale = append(it.stale, *pid)
		}
	})
	if err != nil {
		return fmt.Errorf("read the results of the iterators over processes: %w", err)
	}
	for _, pid := range it.stale {
		if err := m.Delete(pid); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget process %d: %w", pid, err)
		}
	}
	return nil
}

// iterate runs a program over all objects. Since the program prints nothing, the
// kernel returns EAGAIN after each million objects and continues with the next call
// (kernel/bpf/bpf_iter.c, bpf_seq_read). end is a value of threadTime.
func iterate(l *link.Iter, end time.Duration) error {
	r, err := l.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	var b [64]byte
	for {
		switch _, err := r.Read(b[:]); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return err
		case threadTime() > end:
			return fmt.Errorf("not done after %v of CPU time", maxIteration)
		}
	}
}

// threadTime returns the CPU time of the calling thread.
func threadTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
