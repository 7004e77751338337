package bpf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"nodeskoop/bpf/internal/objects"
)

// Events reads the ring and calls f for each event in the order of writing, until
// the context ends; then it returns nil. End it before closing the loader. The next
// event overwrites the current one, so f must copy what it keeps. Only one reader
// may run at a time.
func (l *Loader) Events(ctx context.Context, f func(*Event)) error {
	reader, err := ringbuf.NewReader(l.shared[mapEvents])
	if err != nil {
		return fmt.Errorf("open the event ring: %w", explain(err))
	}
	defer reader.Close()
	stop := context.AfterFunc(ctx, func() { reader.Close() })
	defer stop()

	var (
		record ringbuf.Record
		event  Event
		clock  bootClock
	)
	for {
		if err := reader.ReadInto(&record); err != nil {
			if errors.Is(err, ringbuf.ErrClosed) {
				return nil
			}
			return fmt.Errorf("read the event ring: %w", err)
		}
		if err := event.decode(record.RawSample, clock.boot()); err != nil {
			l.account.malformed.Add(1)
			continue
		}
		l.account.read[event.Type].Add(1)
		f(&event)
	}
}

// bootClock converts the kernel's monotonic time to wall-clock time. The two clocks
// drift apart when the machine sleeps or its clock is set, so the offset is
// measured again from time to time.
type bootClock struct {
	at   time.Time
	read time.Time
}

func (c *bootClock) boot() time.Time {
	now := time.Now()
	if c.read.IsZero() || now.Sub(c.read) > time.Second {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err == nil {
			now = time.Now()
			c.at, c.read = now.Round(0).Add(clockOffset()-time.Duration(ts.Nano())), now
		}
	}
	return c.at
}

// clockOffset is the difference between CLOCK_MONOTONIC in this process and the
// kernel's own clock, which stamps events. It is nonzero in a time namespace only,
// and a process never changes its own.
var clockOffset = sync.OnceValue(func() time.Duration {
	text, err := os.ReadFile("/proc/self/timens_offsets")
	if err != nil {
		return 0 // before Linux 5.6 there are none
	}
	// time_for_children is the namespace of future children; it differs from this
	// process's own only after unshare.
	own, err1 := os.Readlink("/proc/self/ns/time")
	children, err2 := os.Readlink("/proc/self/ns/time_for_children")
	if err1 != nil || err2 != nil || own != children {
		return 0
	}
	return monotonicOffset(string(text))
})

// monotonicOffset parses a line such as "monotonic 86400 0", in seconds and
// nanoseconds. Before Linux 5.7 the file had clock numbers instead of names.
func monotonicOffset(text string) time.Duration {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "monotonic" && f[0] != "1" {
			continue
		}
		s, err1 := strconv.ParseInt(f[1], 10, 64)
		ns, err2 := strconv.ParseInt(f[2], 10, 64)
		if err1 == nil && err2 == nil {
			return time.Duration(s)*time.Second + time.Duration(ns)
		}
	}
	return 0
}

// SetEventLimit sets how many events of a type the kernel lets through per network
// namespace: perSecond on average, burst at once. A rate of zero turns the type
// off: its events are neither sent nor accounted, and counters are not affected.
func (l *Loader) SetEventLimit(t EventType, perSecond float64, burst int) error {
	if t == 0 || t >= eventTypes {
		return fmt.Errorf("set the limit of %s: no such type", t)
	}
	var limit objects.SharedEventLimit
	if perSecond > 0 {
		limit.IntervalNs = max(1, uint64(float64(time.Second)/perSecond))
		limit.ToleranceNs = limit.IntervalNs * uint64(max(burst, 1)-1)
	}
	if err := l.shared[mapLimits].Put(uint32(t), &limit); err != nil {
		return fmt.Errorf("set the limit of %s: %w", t, err)
	}
	return nil
}

// EventAccount accounts for the events of one type since the loader was created:
// Seen = Written + Ignored + Suppressed + Lost. Written minus Read are still in the
// ring.
type EventAccount struct {
	Type       EventType
	Seen       uint64 // occurrences while the type was enabled
	Written    uint64 // put into the ring
	Ignored    uint64 // never reported: I/O that no process waits for
	Suppressed uint64 // suppressed by the token bucket
	Lost       uint64 // found the ring full
	Read       uint64 // handed to the function that reads the events
}

// HeldBack is the number of events of a type that the limit of a network namespace
// has suppressed since the namespace was first followed.
type HeldBack struct {
	// Netns is the inode number; 0 for unattributed and node-wide events.
	// Namespaces that are not followed share small numbers, which are never inode
	// numbers.
	Netns uint64
	Type  EventType
	N     uint64
}

// HeldBack lists the nonzero counts of events suppressed per namespace. With the
// counts of namespaces that are no longer followed, they add up to
// EventAccount.Suppressed.
func (l *Loader) HeldBack() ([]HeldBack, error) {
	var list []HeldBack
	var netns uint32
	var b objects.SharedEventBucket
	it := l.shared[mapBuckets].Iterate()
	for it.Next(&netns, &b) {
		for t, n := range b.Held {
			if n > 0 {
				list = append(list, HeldBack{uint64(netns), EventType(t), n})
			}
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list the events that limits suppressed: %w", err)
	}
	return list, nil
}

// ProgramStats is the cost of one program. Run time and runs are zero unless the
// kernel's BPF statistics are enabled (sysctl kernel.bpf_stats_enabled, or
// EnableStats).
type ProgramStats struct {
	Probe   string
	Program string
	RunTime time.Duration
	Runs    uint64
	// Missed counts runs that the kernel skipped because the program was already
	// running on that CPU; their counts are missing.
	Missed uint64
}

// Stats holds the loader's accounts.
type Stats struct {
	Events    []EventAccount
	Malformed uint64 // records of the ring that could not be decoded
	Programs  []ProgramStats
}

type accountReader struct {
	mu        sync.Mutex
	perCPU    []objects.SharedEventAccount
	malformed atomic.Uint64
	read      [eventTypes]atomic.Uint64
}

// Stats reads the accounts of all types and the cost of all programs.
func (l *Loader) Stats() (Stats, error) {
	var s Stats
	l.account.mu.Lock()
	s.Malformed = l.account.malformed.Load()
	for t := EventType(1); t < eventTypes; t++ {
		if err := l.shared[mapAccounts].Lookup(uint32(t), &l.account.perCPU); err != nil {
			l.account.mu.Unlock()
			return Stats{}, fmt.Errorf("read the account of %s: %w", t, err)
		}
		a := EventAccount{Type: t, Read: l.account.read[t].Load()}
		for _, c := range l.account.perCPU {
			// An event counts as seen a moment before its outcome is known; the
			// difference counts as written.
			a.Written += c.Seen - c.Ignored - c.Suppressed - c.Lost
			a.Ignored += c.Ignored
			a.Suppressed += c.Suppressed
			a.Lost += c.Lost
			a.Seen += c.Seen
		}
		s.Events = append(s.Events, a)
	}
	l.account.mu.Unlock()

	var err error
	if s.Programs, err = l.chains.stats(); err != nil {
		return Stats{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.probes {
		for name, program := range p.programs {
			stats, err := program.Stats()
			if err != nil {
				return Stats{}, fmt.Errorf("statistics of program %s of probe %s: %w", name, p.name, err)
			}
			s.Programs = append(s.Programs, ProgramStats{
				Probe: p.name, Program: name,
				RunTime: stats.Runtime, Runs: stats.RunCount, Missed: stats.RecursionMisses,
			})
		}
	}
	return s, nil
}

// Forget deletes all state of a network namespace that is gone. A namespace named to
// Own is no longer followed.
func (l *Loader) Forget(netns NetnsID) error {
	l.mu.Lock()
	if i := slices.Index(l.owned, netns); i >= 0 {
		l.follow(l.node, slices.Delete(slices.Clone(l.owned), i, i+1), time.Now())
	}
	probes := make([]*Probe, 0, len(l.probes))
	for p := range l.probes {
		probes = append(probes, p)
	}
	l.mu.Unlock()
	var errs []error
	for _, p := range probes {
		errs = append(errs, p.Forget(netns))
	}
	return errors.Join(errs...)
}
