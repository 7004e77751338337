package bpf

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"nodeskoop/bpf/internal/objects"
	"nodeskoop/internal/kernel"
)

//go:generate internal/objects/bpf2go Identity identity.bpf.c

// NetnsID identifies a network namespace. The lower half is its inode number, which the
// kernel gives to another namespace once this one is gone. The upper half is a number
// that the kernel draws at random for each namespace (net->hash_mix,
// net/core/net_namespace.c, setup_net). It distinguishes namespaces that had the same
// inode number. The zero NetnsID stands for occurrences whose namespace is unknown, or
// that found no room.
type NetnsID uint64

// Inode returns the inode number.
func (id NetnsID) Inode() uint64 { return uint64(uint32(id)) }

// Netns is a network namespace that the caller follows.
type Netns struct {
	Inode uint64
	// Path is a file of the namespace, which is opened once to learn its NetnsID.
	// Another namespace with the same number must have another path. Without a path
	// the upper half of the NetnsID is 0.
	Path string
}

// identity is the result of asking for a namespace's NetnsID.
type identity struct {
	id  NetnsID
	err error // why the NetnsID is unknown
}

// identities asks the kernel for the NetnsIDs of namespaces, and for this process's PID.
type identities struct{ netns, pid *ebpf.Program }

func newIdentities(types *kernelTypes) (*identities, error) {
	spec, err := objects.LoadIdentity()
	if err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types.cache})
	if err != nil {
		return nil, fmt.Errorf("load the programs that identify network namespaces and this process: %w", explain(err))
	}
	defer coll.Close()
	return &identities{coll.DetachProgram(objects.IdentityProgNetnsOfFile), coll.DetachProgram(objects.IdentityProgOwnPid)}, nil
}

func (i *identities) close() error {
	if i == nil {
		return nil
	}
	return errors.Join(i.netns.Close(), i.pid.Close())
}

// of returns the NetnsID of a namespace.
func (i *identities) of(n Netns) (NetnsID, error) {
	fd, err := kernel.OpenNetns(n.Path, n.Inode)
	if err != nil {
		return 0, fmt.Errorf("identify a network namespace: %w", err)
	}
	defer unix.Close(fd)
	upper, err := i.netns.Run(&ebpf.RunOptions{Context: []uint64{uint64(fd)}})
	if err != nil {
		return 0, fmt.Errorf("identify the network namespace %s: %w", n.Path, err)
	}
	return NetnsID(upper)<<32 | NetnsID(n.Inode), nil
}

var errNotOwned = errors.New("identify a network namespace: it is not followed")

// ID returns the NetnsID of a namespace that the last call of Own named. The error says
// why it is not known; the next call of Own tries again.
func (l *Loader) ID(n Netns) (NetnsID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, ok := l.identified[n]
	if !ok {
		i.err = errNotOwned
	}
	return i.id, i.err
}

// Followed lists the namespaces named to Own.
func (l *Loader) Followed() []NetnsID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.owned)
}

// identify updates the NetnsIDs of the followed namespaces. It asks for each once, so a
// call without changes is cheap. The caller holds the lock.
func (l *Loader) identify(set []Netns) {
	identified := make(map[Netns]identity, len(set))
	for _, n := range set {
		i, ok := l.identified[n]
		if !ok || i.err != nil {
			i.id, i.err = l.idOf(n)
		}
		identified[n] = i
	}
	l.identified = identified
}

func (l *Loader) idOf(n Netns) (NetnsID, error) {
	if n.Path == "" {
		return NetnsID(n.Inode), nil
	}
	if err := l.needIdentities(); err != nil {
		return 0, err
	}
	return l.identities.of(n)
}

// ownPID returns the PID of this process in the initial PID namespace, which is what
// programs see. This process may be in another one, and /proc of a third.
func (l *Loader) ownPID() (uint32, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.needIdentities(); err != nil {
		return 0, fmt.Errorf("ask for this process's PID: %w", err)
	}
	pid, err := l.identities.pid.Run(&ebpf.RunOptions{})
	if err != nil {
		return 0, fmt.Errorf("ask for this process's PID: %w", err)
	}
	return pid, nil
}

// needIdentities loads the programs, at most one failing attempt a minute. The caller
// holds the lock.
func (l *Loader) needIdentities() error {
	if l.identities != nil {
		return nil
	}
	if now := time.Now(); l.refused.err == nil || now.Sub(l.refused.at) >= time.Minute {
		l.refused.at, l.refused.err = now, l.loadIdentities()
	}
	return l.refused.err
}

func (l *Loader) loadIdentities() error {
	types, err := l.kernelTypes()
	if err != nil {
		return err
	}
	l.identities, err = newIdentities(types)
	return err
}
