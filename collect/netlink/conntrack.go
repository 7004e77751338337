package netlink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// The counters of the probe, in the order of ctCounts.
const (
	ctFound = iota
	ctInvalid
	ctIgnore
	ctInsert
	ctInsertFailed
	ctDrop
	ctEarlyDrop
	ctError
	ctSearchRestart
	ctCounters
)

// ctCounts are the counters of one CPU, 32 bits each as in the kernel.
type ctCounts [ctCounters]uint32

// conntrack reads the counters of connection tracking. It follows
// ctnetlink_ct_stat_cpu_fill_info and ctnetlink_stat_ct_fill_info in
// net/netfilter/nf_conntrack_netlink.c, and ct_cpu_seq_show in
// net/netfilter/nf_conntrack_standalone.c.
type conntrack struct {
	granularity collect.Granularity
	root        string // where procfs is mounted
	counters    [ctCounters]*catalog.Metric
	entries     *catalog.Metric
	max         *catalog.Metric
	loaded      atomic.Bool // ctnetlink is loaded, so a request loads no module
}

func newConntrack(env collect.Env) (collect.Probe, error) {
	p := &conntrack{granularity: collect.HostNetns, root: env.ProcRoot,
		entries: catalog.MustMetric("kubeskoop_conntrack_entries"),
		max:     catalog.MustMetric("kubeskoop_conntrack_maxentries"),
	}
	if pods, _ := env.Options["pods"].(bool); pods {
		p.granularity = collect.EachNetns
	}
	for i, name := range [ctCounters]string{ctFound: "found", ctInvalid: "invalid", ctIgnore: "ignore", ctInsert: "insert",
		ctInsertFailed: "insertfailed", ctDrop: "drop", ctEarlyDrop: "earlydrop", ctError: "error", ctSearchRestart: "searchrestart"} {
		p.counters[i] = catalog.MustMetric("kubeskoop_conntrack_" + name)
	}
	return p, nil
}

func (p *conntrack) Granularity() collect.Granularity { return p.granularity }

func (*conntrack) Close() error { return nil }

// ctState is the state of one namespace: the last counts of each CPU, and the 64-bit sums
// since the start.
type ctState struct {
	cpus []ctCPU
	sum  [ctCounters]uint64
}

type ctCPU struct {
	seen bool
	last ctCounts
}

// Keep appends the sums and the counts of each CPU.
func (s *ctState) Keep(b []byte) []byte {
	if len(s.cpus) == 0 {
		return b
	}
	b = collect.AppendUints(b, s.sum[:]...)
	for i := range s.cpus {
		c := &s.cpus[i]
		seen := uint64(0)
		if c.seen {
			seen = 1
		}
		b = collect.AppendUints(b, seen)
		for _, n := range c.last {
			b = collect.AppendUints(b, uint64(n))
		}
	}
	return b
}

// Recall restores what Keep appended.
func (s *ctState) Recall(b []byte) error {
	d := collect.NewDecoder(b)
	d.Uints(s.sum[:])
	for d.More() {
		c := ctCPU{seen: d.Uint() == 1}
		for i := range c.last {
			c.last[i] = uint32(d.Uint())
		}
		s.cpus = append(s.cpus, c)
	}
	return d.Err()
}

// add counts the counters of one CPU. An offline CPU keeps its counts.
func (s *ctState) add(cpu int, now *ctCounts) {
	for cpu >= len(s.cpus) {
		s.cpus = append(s.cpus, ctCPU{})
	}
	c := &s.cpus[cpu]
	for i := range now {
		if c.seen {
			s.sum[i] += kernel.Since32(now[i], c.last[i])
		} else {
			s.sum[i] += uint64(now[i])
		}
	}
	c.seen, c.last = true, *now
}

// The sysctls below procfs that exist while conntrack is loaded.
const (
	sysctlCount = "sys/net/netfilter/nf_conntrack_count"
	sysctlMax   = "sys/net/netfilter/nf_conntrack_max"
)

func (p *conntrack) Sample(v *collect.View) error {
	s := collect.State[ctState](v)
	var size ctSize
	switch _, err := v.ReadHost(sysctlCount); {
	case errors.Is(err, fs.ErrNotExist):
		// Conntrack is not loaded. A netlink request would load it, and so change how the
		// node forwards packets.
		if err := p.hasSysctls(v); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err = p.read(v, s, &size); err != nil {
			return err
		}
	}
	for i, m := range p.counters {
		v.Add(m, float64(s.sum[i]))
	}
	v.Add(p.entries, float64(size.entries))
	v.Add(p.max, float64(size.max))
	return nil
}

// hasSysctls returns an error if a missing sysctl proves nothing, as in a procfs mounted
// with subset=pid, which contains only processes.
func (p *conntrack) hasSysctls(v *collect.View) error {
	dir := p.root + "/sys/net"
	var user uint64
	err := v.Do(0, dir, func() error {
		user, _ = kernel.Inode(p.root + "/self/ns/user")
		var st unix.Stat_t
		return unix.Stat(dir, &st)
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("find out whether conntrack is loaded: there is no %s, where its sysctls would be (is procfs mounted with subset=pid?)", dir)
	case err == nil && user != 0 && user != kernel.FirstUserNamespace:
		// Linux before 5.13 hides them (nf_conntrack_standalone_init_sysctl).
		return errors.New("find out whether conntrack is loaded: in a user namespace its sysctls may be hidden (run nodeskoop in the host's)")
	}
	return err
}

// ctSize is the size of the whole table.
type ctSize struct {
	entries, max       uint64
	hasEntries, hasMax bool
}

// read asks ctnetlink, or reads the file if ctnetlink is not available.
func (p *conntrack) read(v *collect.View, s *ctState, size *ctSize) error {
	mayAsk := p.mayAsk(v)
	var err error
	if mayAsk {
		if err = p.ask(v, s, size); err != nil {
			var errno unix.Errno
			if !errors.As(err, &errno) {
				return err
			}
		}
	}
	if err != nil || !mayAsk {
		b, fileErr := v.ReadNet("stat/nf_conntrack")
		switch {
		case fileErr == nil:
			if err = readStatFile(b, s, size); err != nil {
				return err
			}
		case !mayAsk && errors.Is(fileErr, fs.ErrNotExist):
			// ctnetlink is not loaded, but there is no file either: load it.
			if err = p.ask(v, s, size); err != nil {
				return err
			}
		case errors.Is(fileErr, fs.ErrNotExist):
			return err
		default:
			return fileErr
		}
	}
	if !size.hasMax { // Linux before 4.18 does not send max, which is the same for all namespaces
		b, err := v.ReadHost(sysctlMax)
		if err == nil {
			size.max, err = parseSysctl(sysctlMax, b)
		}
		return err
	}
	return nil
}

// mayAsk reports whether ctnetlink seems to be loaded, so that a request does not load it.
func (p *conntrack) mayAsk(v *collect.View) bool {
	if p.loaded.Load() {
		return true
	}
	b, err := v.ReadHost("modules")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false // ctnetlink may not be loaded
	}
	if err == nil && hasModule(b, "nf_conntrack") && !hasModule(b, "nf_conntrack_netlink") {
		return false
	}
	p.loaded.Store(true)
	return true
}

// hasModule reports whether /proc/modules lists a module.
func hasModule(b []byte, name string) bool {
	for len(b) > 0 {
		line := b
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			line, b = b[:i], b[i+1:]
		} else {
			b = nil
		}
		if len(line) > len(name) && line[len(name)] == ' ' && string(line[:len(name)]) == name {
			return true
		}
	}
	return false
}

const (
	ctGetStatsCPU       = unix.NFNL_SUBSYS_CTNETLINK<<8 | 4 // IPCTNL_MSG_CT_GET_STATS_CPU
	ctGetStats          = unix.NFNL_SUBSYS_CTNETLINK<<8 | 5 // IPCTNL_MSG_CT_GET_STATS
	sizeofNfgenmsg      = 4
	ctaGlobalEntries    = 1
	ctaGlobalMaxEntries = 2
)

// ctAttr maps the attributes of enum ctattr_stats_cpu to counters; -1: not used. Kernels
// omit counters that they no longer have.
var ctAttr = [...]int8{
	0: -1, 1: -1, 2: ctFound, 3: -1, 4: ctInvalid, 5: ctIgnore, 6: -1, 7: -1, 8: ctInsert, 9: ctInsertFailed,
	10: ctDrop, 11: ctEarlyDrop, 12: ctError, 13: ctSearchRestart,
}

// ask requests the counters of each CPU and the size of the table from ctnetlink.
func (p *conntrack) ask(v *collect.View, s *ctState, size *ctSize) error {
	return v.Enter("read conntrack counters", func() error {
		c, err := dial(unix.NETLINK_NETFILTER, "conntrack counters (ctnetlink)", v.Scratch)
		if err != nil {
			return err
		}
		v.Scratch = c.buf
		defer c.close()
		var req [unix.SizeofNlMsghdr + sizeofNfgenmsg]byte
		putHeader(req[:], ctGetStatsCPU, unix.NLM_F_DUMP)
		if _, err := c.ask(req[:], func(_ uint16, msg []byte) error {
			var now ctCounts
			cpu, err := now.parse(msg)
			if err == nil {
				s.add(cpu, &now)
			}
			return err
		}); err != nil {
			return err
		}
		putHeader(req[:], ctGetStats, 0)
		_, err = c.ask(req[:], func(_ uint16, msg []byte) error { return size.parse(msg) })
		if err != nil && !refused(err) {
			return err
		}
		if !size.hasEntries {
			size.entries, err = p.countInside()
			return err
		}
		return nil
	})
}

// countInside reads the number of entries in the thread's network namespace.
func (p *conntrack) countInside() (uint64, error) {
	b, err := os.ReadFile(p.root + "/" + sysctlCount)
	if err != nil {
		return 0, err
	}
	return parseSysctl(sysctlCount, b)
}

// parse parses the message about one CPU, whose number is in the header.
func (n *ctCounts) parse(msg []byte) (cpu int, err error) {
	if len(msg) < sizeofNfgenmsg {
		return 0, fmt.Errorf("%w: the counters of a CPU in %d bytes", errMalformed, len(msg))
	}
	cpu = int(binary.BigEndian.Uint16(msg[2:]))
	for b := msg[sizeofNfgenmsg:]; len(b) > 0; {
		typ, value, rest, err := nextAttr(b)
		if err != nil {
			return 0, err
		}
		b = rest
		if int(typ) >= len(ctAttr) || ctAttr[typ] < 0 {
			continue
		}
		if len(value) != 4 {
			return 0, fmt.Errorf("%w: conntrack counter %d of CPU %d has %d bytes", errMalformed, typ, cpu, len(value))
		}
		n[ctAttr[typ]] = binary.BigEndian.Uint32(value)
	}
	return cpu, nil
}

// parse parses the message about the whole table.
func (z *ctSize) parse(msg []byte) error {
	if len(msg) < sizeofNfgenmsg {
		return fmt.Errorf("%w: the size of the conntrack table in %d bytes", errMalformed, len(msg))
	}
	for b := msg[sizeofNfgenmsg:]; len(b) > 0; {
		typ, value, rest, err := nextAttr(b)
		if err != nil {
			return err
		}
		b = rest
		if typ != ctaGlobalEntries && typ != ctaGlobalMaxEntries {
			continue
		}
		if len(value) != 4 {
			return fmt.Errorf("%w: the size of the conntrack table has %d bytes", errMalformed, len(value))
		}
		if typ == ctaGlobalEntries {
			z.entries, z.hasEntries = uint64(binary.BigEndian.Uint32(value)), true
		} else {
			z.max, z.hasMax = uint64(binary.BigEndian.Uint32(value)), true
		}
	}
	return nil
}

func parseSysctl(name string, b []byte) (uint64, error) {
	n, err := strconv.ParseUint(string(bytes.TrimSuffix(b, []byte("\n"))), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %q is not a number", name, b)
	}
	return n, nil
}

// statColumns names the columns of /proc/PID/net/stat/nf_conntrack.
var statColumns = [ctCounters]string{ctFound: "found", ctInvalid: "invalid", ctIgnore: "ignore", ctInsert: "insert",
	ctInsertFailed: "insert_failed", ctDrop: "drop", ctEarlyDrop: "early_drop", ctError: "icmp_error", ctSearchRestart: "search_restart"}

const statFile = "net/stat/nf_conntrack"

// readStatFile parses /proc/PID/net/stat/nf_conntrack: a line of names, then a line of
// hexadecimal numbers for each possible CPU. prometheus/procfs goes by the positions of the
// columns and lacks icmp_error (see TestLibrary).
func readStatFile(b []byte, s *ctState, size *ctSize) (err error) {
	var column [32]int8 // counter in each column; -1: none, -2: the number of entries
	columns, cpu := 0, 0
	l := kernel.Lines{File: statFile, Rest: b}
	for {
		line, ok, err := l.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if l.N == 1 {
			if columns, err = readStatHeader(line, &column); err != nil {
				return err
			}
			continue
		}
		var now ctCounts
		got := 0
		for f := range bytes.FieldsSeq(line) {
			x, ok := kernel.Hex32(f)
			if !ok {
				return l.Errorf("%q is not a hexadecimal number of 32 bits", f)
			}
			if got < columns {
				switch c := column[got]; {
				case c >= 0:
					now[c] = x
				case c == -2:
					size.entries = uint64(x)
				}
			}
			got++
		}
		if got != columns {
			return l.Errorf("%d numbers under %d names", got, columns)
		}
		s.add(cpu, &now)
		cpu++
	}
	if cpu == 0 {
		return fmt.Errorf("%s: no line for any CPU", statFile)
	}
	size.hasEntries = true
	return nil
}

func readStatHeader(line []byte, column *[32]int8) (columns int, err error) {
	known := 0
	for f := range bytes.FieldsSeq(line) {
		if columns == len(column) {
			return 0, fmt.Errorf("%s line 1: more than %d columns", statFile, len(column))
		}
		column[columns] = -1
		if string(f) == "entries" {
			column[columns] = -2
			known++
		}
		for i, name := range statColumns {
			if string(f) == name {
				column[columns] = int8(i)
				known++
			}
		}
		columns++
	}
	if known < 2 || column[0] != -2 {
		return 0, fmt.Errorf("%s line 1: %q does not name its columns, entries first", statFile, line)
	}
	return columns, nil
}
