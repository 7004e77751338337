package proc

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf"
	"nodeskoop/collect"
	"nodeskoop/internal/kernel"
)

// openProc opens ROOT/PID followed by name.
func openProc(root string, pid int, name string, flags int) (fd int, err error) {
	if fd, err = kernel.OpenProcess(root, pid, name, flags); err != nil {
		return -1, wrapProc("open", root, pid, name, err)
	}
	return fd, nil
}

// wrapProc adds context to a failed call about a process.
func wrapProc(verb, root string, pid int, name string, err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return errGone
	}
	hint := ""
	if (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) && !mayTrace() {
		hint = " (needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH)"
	}
	return fmt.Errorf("%s %s/%d%s: %w%s", verb, root, pid, name, err, hint)
}

// errGone says that the process has ended. It stays within this package: kernel.ErrGone
// from Sample would say that the whole pod has ended.
var errGone = errors.New("the process has ended")

func isGone(err error) bool { return errors.Is(err, errGone) || errors.Is(err, kernel.ErrGone) }

// unreadable collects errors about single processes.
type unreadable struct {
	first  error
	count  int
	denied int
}

func (u *unreadable) add(_ int, err error) {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		u.denied++
	}
	if u.count++; u.first == nil {
		u.first = err
	}
}

// err returns nil, or an error that some processes are missing in the values.
func (u *unreadable) err() error {
	if u.count == 0 {
		return nil
	}
	part := &collect.PartialError{Err: u.first}
	if u.count > 1 {
		part.Err = fmt.Errorf("%w; and %d more processes", u.first, u.count-1)
	}
	// The process has every capability that reading needs, so only a rule outside its
	// control can have refused access.
	if u.denied == u.count && mayTrace() {
		part.Protected = u.count
		part.Err = fmt.Errorf("protected from every other process: %w", part.Err)
	}
	return part
}

// mayTrace reports whether this process has the capabilities to read other users'
// processes. Capabilities in a separate user namespace apply only to that namespace.
var mayTrace = sync.OnceValue(func() bool {
	if user, err := kernel.Inode("/proc/self/ns/user"); err != nil || user != kernel.FirstUserNamespace {
		return false
	}
	const need = 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_READ_SEARCH
	have, err := kernel.OwnCapabilities()
	return err == nil && have&need == need
})

// typeInfo is the kernel's BTF for the probes of one Runner. The probes are built one
// after another; the first sample releases the BTF.
type typeInfo struct {
	types   *bpf.KernelTypes
	release func()
}

func newTypeInfo() typeInfo {
	types := new(bpf.KernelTypes)
	return typeInfo{types, types.Release}
}

// snapshot is the output of a BPF iterator over all processes, by PID, or of a walk through
// all TCP connections, by network namespace. It is read once per cycle, and not safe for
// concurrent use.
type snapshot[V any] struct {
	log      *slog.Logger
	release  func()       // releases the BTF that the iterator was loaded with
	instead  string       // for the log: what happens without the iterator
	iterator iterator[V]  // nil: none
	cycle    uint64       // cycle of the last reading
	of       map[uint32]V // nil: not read, or failed
	retry    uint64       // first cycle in which to retry
	failures uint64       // number of failures in a row
}

// maxRetry is the most cycles between two attempts of a failing iterator.
const maxRetry = 16

type iterator[V any] interface {
	Read() (map[uint32]V, error)
	Close() error
}

// newSnapshot loads the iterator over processes if possible.
func newSnapshot[V any, I iterator[V]](env collect.Env, t typeInfo, instead string, load func(*bpf.KernelTypes) (I, error)) snapshot[V] {
	s := snapshot[V]{log: env.Log, release: t.release, instead: instead}
	s.load(mayIterate(env), func() (iterator[V], error) { return load(t.types) })
	return s
}

// load loads the iterator unless err says why not to.
func (s *snapshot[V]) load(err error, load func() (iterator[V], error)) {
	if err == nil {
		var i iterator[V]
		if i, err = load(); err == nil {
			s.iterator = i
		}
	}
	if err != nil {
		s.log.Debug(s.instead, "reason", err)
	}
}

// refresh reads the iterator once per cycle. If that fails, it retries some cycles later.
func (s *snapshot[V]) refresh(v *collect.View) { s.refreshIn(v.Cycle()) }

func (s *snapshot[V]) refreshIn(cycle uint64) {
	if s.cycle == cycle {
		return
	}
	s.cycle = cycle
	s.release()
	if s.iterator == nil || s.cycle < s.retry {
		return
	}
	of, err := s.iterator.Read()
	if s.of = of; err == nil {
		if s.failures > 0 {
			s.failures = 0
			s.log.Info("reading through BPF works again", "before", s.instead)
		}
		return
	}
	s.of = nil
	if s.failures++; s.failures == 1 {
		s.log.Warn(s.instead+" until it works again", "reason", err)
	}
	s.retry = s.cycle + min(uint64(1)<<min(s.failures, 8), maxRetry)
}

// drop closes the iterator; the probe continues without it.
func (s *snapshot[V]) drop() error {
	i := s.iterator
	s.iterator, s.of = nil, nil
	if i == nil {
		return nil
	}
	return i.Close()
}

// mayIterate returns an error if BPF iterators over processes do not pay off (for a
// single cycle) or do not work (if procfs numbers processes differently from the kernel).
func mayIterate(env collect.Env) error {
	if env.Once {
		return errors.New("it is done once only")
	}
	root := env.ProcRoot
	self, err := os.Readlink(root + "/self")
	if err != nil {
		return err
	}
	pids, err := kernel.Inode(root + "/self/ns/pid")
	if err != nil {
		return fmt.Errorf("ask for the PID namespace of %s: %w", root, errors.Unwrap(err))
	}
	if pids != kernel.FirstPIDNamespace || self != strconv.Itoa(os.Getpid()) {
		return fmt.Errorf("the processes of %s are numbered as in a container", root)
	}
	return nil
}
